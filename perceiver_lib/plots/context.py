"""What a context is worth: copies by their distance, bits by how a model is run, and what each byte of a text costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]


def copies_by_distance(
  curves: Mapping[str, Curve], windowed: Mapping[str, Curve], *, window: int, guessing: float, title: str
) -> Figure:
  """Share of right copies against the distance to the byte that is copied, on a logarithmic axis.

  Lines are means over four neighbouring distances.

  Args:
    curves: name -> (distances [d], shares [d] in 0..1) of models that see everything.
    windowed: the same of models that see the last `window` tokens only, dashed.
    guessing: share of a guess that is right.
  """
  with theme.use_theme():
    figure = theme.new_figure(4.4, title=title)
    axes = figure.add_subplot()
    colours = theme.PALETTE[:1] + theme.PALETTE[2:]
    # Curves of one height lie on each other; where one ends and how much of it is right stands above it.
    for number, ((name, (distance, share)), colour) in enumerate(zip(curves.items(), colours, strict=False)):
      axes.plot(distance, _smoothed(share), color=colour, label=name)
      height = 112 + 13 * number
      axes.plot([distance.min(), distance.max()], [height] * 2, color=colour, marker='|', linewidth=1)
      axes.annotate(f'{name}: {100 * share.mean():.1f} %', (distance.max(), height), xytext=(-4, 2),
                    textcoords='offset points', ha='right', fontsize=9, color=colour)  # fmt: skip
    for name, (distance, share) in windowed.items():
      axes.plot(distance, _smoothed(share), color=theme.VERMILLION, linestyle='--', label=name)
    axes.axvline(window, color=theme.GREY, linewidth=1)
    axes.text(window, 50, ' end of the window', color=theme.GREY, fontsize=9)
    axes.axhline(100 * guessing, color=theme.GREY, linestyle=':', label=f'guessing, {100 * guessing:.1f} %')
    axes.set_xscale('log', base=4)
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.set(xlabel='distance to the byte that is copied (tokens, logarithmic)', ylabel='right (%)')
    axes.set_ylim(-3, 114 + 13 * len(curves))
    axes.set_yticks(range(0, 101, 20))
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines[len(curves) :], names[len(curves) :], loc='outside lower left', ncols=2)
  parts = [f'{name} {100 * share.mean():.1f} %' for name, (_, share) in curves.items()]
  for name, (distance, share) in windowed.items():
    near, far = share[distance <= window], share[distance > window]
    parts.append(f'{name} {100 * near.mean():.0f} % within {window} tokens, {100 * far.mean():.1f} % beyond')
  return theme.describe(figure, f'{title}. Right copies against distance: {"; ".join(parts)}.')


def _smoothed(share: Float[np.ndarray, 'd'], width: int = 4) -> Float[np.ndarray, 'd']:
  kernel = np.ones(width)
  return 100 * np.convolve(share, kernel, 'same') / np.convolve(np.ones(len(share)), kernel, 'same')


def where_context_pays(
  cut: Mapping[str, Mapping[int, float]],
  foreign: Mapping[str, Mapping[int, float]],
  names: Mapping[str, float],
  *,
  title: str,
) -> Figure:
  """Bits per byte against the visible context of several texts, and bits of a name each time that it comes.

  Args:
    cut: text -> {bytes of context: bits per byte} with nothing before that context.
    foreign: the same with another text's bytes before it, dashed.
    names: which time -> bits of a name; the last one is the control.
  """
  with theme.use_theme():
    figure = theme.new_figure(3.6, title=title)
    lines, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    for (text, bits), colour in zip(cut.items(), theme.PALETTE, strict=False):
      lines.plot(bits.keys(), bits.values(), 'o-', color=colour, label=text)
      lines.plot(foreign[text].keys(), foreign[text].values(), 's--', color=colour, alpha=0.7)
      lines.annotate(f'{bits[max(bits)]:.2f}', (max(bits), bits[max(bits)]), xytext=(5, -4), textcoords='offset points')
    lines.plot([], [], 's--', color=theme.GREY, label="another text's bytes before it")
    lines.set(xscale='log', xlabel='bytes of its own context', ylabel='bits per byte')
    lines.set_xticks(list(next(iter(cut.values()))), [str(n) for n in next(iter(cut.values()))])
    lines.minorticks_off()
    lines.margins(x=0.12)
    lines.legend()
    colours = [theme.PALETTE[0]] * (len(names) - 1) + [theme.GREY]
    bars.bar_label(bars.bar(range(len(names)), names.values(), color=colours), fmt='%.1f', padding=2)
    bars.set_xticks(range(len(names)), [textwrap.fill(name, 13) for name in names])
    bars.set(ylabel='bits of a new name')
    bars.margins(y=0.12)
  parts = [
    f'{text}: '
    + ', '.join(f'{bits:.2f} at {n} bytes ({foreign[text][n]:.2f} behind others)' for n, bits in found.items())
    for text, found in cut.items()
  ]
  said = ', '.join(f'{name} time {bits:.1f}' for name, bits in names.items())
  return theme.describe(figure, f'{title}. Bits per byte by context. {"; ".join(parts)}. Bits of a new name: {said}.')


def bits_by_setting(
  panels: Mapping[str, Mapping[int, float]], by_cost: Mapping[str, Mapping[int, tuple[float, float]]], *, title: str
) -> Figure:
  """Bits per byte of one model, run in other ways: one panel a setting, with one scale of bits.

  Args:
    panels: axis label -> {setting: bits per byte}.
    by_cost: axis label -> {number of latents: (bits per byte, milliseconds)}, drawn against the milliseconds.
  """
  with theme.use_theme():
    figure = theme.new_figure(3.2, title=title)
    grid = figure.subplots(1, len(panels) + len(by_cost), sharey=True)
    for axes, (label, bits) in zip(grid, panels.items(), strict=False):
      axes.plot(bits.keys(), bits.values(), 'o-')
      axes.set(xscale='log', xlabel=label)
      axes.set_xticks(list(bits), [str(number) for number in bits])
      for number, value in bits.items():
        axes.annotate(f'{value:.2f}', (number, value), xytext=(2, 6), textcoords='offset points', fontsize=9)
    for axes, (label, found) in zip(grid[len(panels) :], by_cost.items(), strict=True):
      bits, cost = zip(*found.values(), strict=True)
      axes.plot(cost, bits, 'o-', color=theme.GREEN)
      for index, (number, at) in enumerate(zip(found, zip(cost, bits, strict=True), strict=True)):
        words, place = f'N = {number}\n{at[1]:.2f}', (0, -28 if index % 2 else 6)
        axes.annotate(words, at, xytext=place, textcoords='offset points', ha='center', fontsize=9)
      axes.set(xscale='log', xlabel=label)
      axes.set_xticks(cost, [f'{value:.0f}' for value in cost])
    grid[0].set(ylabel='bits per byte')
    for axes in grid:
      axes.minorticks_off()
      axes.margins(x=0.15, y=0.25)
  parts = [f'{label}: ' + ', '.join(f'{n} {b:.3f}' for n, b in bits.items()) for label, bits in panels.items()]
  for label, found in by_cost.items():
    parts.append(f'{label}: ' + ', '.join(f'N = {n} {b:.3f} in {t:.1f} ms' for n, (b, t) in found.items()))
  return theme.describe(figure, f'{title}. Bits per byte by {"; by ".join(parts)}.')


def surprise(text: str, bits: Float[np.ndarray, 'm'], *, title: str, per_line: int = 64) -> Figure:
  """A text whose characters stand on a background as dark as the bits they cost; from 10 bits on, no darker."""
  with theme.use_theme():
    lines = -(-len(bits) // per_line)
    figure = theme.new_figure(0.3 * lines + 1.0, title=title)
    axes = figure.add_subplot()
    cells = np.full(lines * per_line, np.nan)
    cells[: len(bits)] = bits
    drawn = axes.imshow(cells.reshape(lines, per_line), cmap='Blues', vmin=0, vmax=10, aspect='auto')
    for index, (character, cost) in enumerate(zip(text, bits, strict=True)):
      symbol, (y, x) = {'\n': '↵'}.get(character, character), divmod(index, per_line)
      colour = 'white' if cost > 6 else 'black'
      axes.text(x, y, symbol, family='monospace', fontsize=9, color=colour, ha='center', va='center')
    theme.hide_ticks(axes)
    figure.colorbar(drawn, ax=axes, label='bits', extend='max', pad=0.01)
  return theme.describe(figure, f'{title}. {bits.mean():.2f} bits per byte on average, {bits.max():.1f} at most.')
