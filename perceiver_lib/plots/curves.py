"""Training curves and bars that never stand alone: baselines, the spread over seeds, and the paper's value beside."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Number = float | int | np.number
Curve = tuple[Sequence[Number] | np.ndarray, Sequence[Number] | np.ndarray]


def _draw_baselines(axes: Axes, baselines: Mapping[str, Number]) -> None:
  """Horizontal lines, named at the right edge; names that would overlap are moved apart."""
  low, high = axes.get_ylim()
  size = axes.figure.get_size_inches()[1] * 0.72
  gap = 0.17 / size * (high - low)
  place = -np.inf
  for name, value in sorted(baselines.items(), key=lambda item: item[1]):
    axes.axhline(value, color=theme.GREY, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    place = max(place + gap, value)
    edge = axes.get_yaxis_transform()
    axes.plot([1.0, 1.02], [value, place], color=theme.GREY, linewidth=0.8, transform=edge, clip_on=False)
    axes.text(1.025, place, f'{name} {value:.4g}', transform=edge, fontsize=9, color=theme.GREY, va='center')


def training_curves(
  curves: Mapping[str, Curve],
  *,
  title: str,
  y_label: str,
  baselines: Mapping[str, Number],
  x_label: str = 'training step',
) -> Figure:
  """Curves by name against horizontal baselines.

  Args:
    curves: name -> (x [t], y [t]) or (x [t], y [seeds, t]). Several seeds are drawn as their median inside the band
      from the smallest to the largest. A name that starts with 'train' is dotted, since it says nothing of new data.
    y_label: the quantity and its unit, such as 'validation loss (nats per byte)'.
    baselines: name -> value, at least one: a curve that nothing is compared with tells little.

  Raises:
    ValueError: if there is no curve or no baseline, or x and y do not match.
  """
  if not curves or not baselines:
    raise ValueError(f'Pass at least one curve and one baseline; got {len(curves)} and {len(baselines)}.')
  with theme.use_theme():
    figure = theme.new_figure(3.6, title=title)
    axes = figure.add_subplot()
    ends = []
    for index, (name, (x, y)) in enumerate(curves.items()):
      x, y = np.asarray(x, np.float64), np.atleast_2d(np.asarray(y, np.float64))
      if y.ndim != 2 or x.shape != y.shape[1:]:
        raise ValueError(f'Curve {name!r} needs as many y as x; got x of shape {x.shape} and y of shape {y.shape}.')
      colour, middle = theme.PALETTE[index % len(theme.PALETTE)], np.median(y, axis=0)
      seeds = f' (median of {len(y)} seeds)' if len(y) > 1 else ''
      marker = 'o' if len(x) < 20 else None
      line = ':' if name.startswith('train') else '-'
      axes.plot(x, middle, line, color=colour, marker=marker, markersize=4, label=name + seeds)
      if len(y) > 1:
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.2, linewidth=0)
      ends.append(f'{name} ends at {middle[-1]:.4g}')
    bottom, top = axes.get_ylim()
    margin = 0.05 * (max(top, *baselines.values()) - min(bottom, *baselines.values()))
    axes.set_ylim(min(bottom, min(baselines.values()) - margin), max(top, max(baselines.values()) + margin))
    axes.set(xlabel=x_label, ylabel=y_label)
    _draw_baselines(axes, baselines)
    axes.margins(x=0.01)
    axes.legend(loc='best', frameon=True, edgecolor='none', framealpha=0.9)
  beside = ', '.join(f'{name} {value:.4g}' for name, value in baselines.items())
  return theme.describe(figure, f'{title}. {y_label} against {x_label}: {"; ".join(ends)}. Baselines: {beside}.')


def bars_beside_paper(
  measured: Mapping[str, Number | Sequence[Number] | np.ndarray],
  *,
  title: str,
  y_label: str,
  baselines: Mapping[str, Number],
  paper: Mapping[str, Number] | None = None,
  paper_label: str = '',
) -> Figure:
  """Bars of measured values, with the spread over seeds, the paper's values beside and baselines behind.

  Args:
    measured: name -> value, or its values over seeds (median as the bar, smallest to largest as the whisker).
    y_label: the quantity and its unit.
    baselines: name -> value, at least one.
    paper: name -> published value, for any of the names of `measured`.
    paper_label: who published them on what scale, such as 'paper (ImageNet, 44.9M parameters)'.

  Raises:
    ValueError: if there is no bar or baseline, a paper value has no bar, or its scale is not said.
  """
  paper = paper or {}
  if not measured or not baselines:
    raise ValueError(f'Pass at least one measured value and one baseline; got {len(measured)} and {len(baselines)}.')
  if set(paper) - set(measured):
    raise ValueError(f'Paper values without a bar: {sorted(set(paper) - set(measured))}; bars are {list(measured)}.')
  if paper and not paper_label:
    raise ValueError('Say on what scale the paper measured: paper_label is empty.')
  with theme.use_theme():
    figure = theme.new_figure(3.6, title=title)
    axes = figure.add_subplot()
    values = [np.atleast_1d(np.asarray(value, np.float64)) for value in measured.values()]
    middle = np.array([np.median(value) for value in values])
    spread = np.array([(m - v.min(), v.max() - m) for m, v in zip(middle, values, strict=True)]).T
    width, x = (0.38 if paper else 0.6), np.arange(len(values))
    seeds = max(map(len, values))
    label = f'measured (median and range of {seeds} seeds)' if seeds > 1 else 'measured'
    shift = width / 2 if paper else 0.0
    whiskers = spread if seeds > 1 else None
    axes.bar(x - shift, middle, width, yerr=whiskers, capsize=4, color=theme.BLUE, label=label)
    for place, value, up in zip(x - shift, middle, spread[1], strict=True):
      _write_value(axes, place, value, value + max(up, 0.0))
    if paper:
      places = np.array([index for index, name in enumerate(measured) if name in paper]) + shift
      published = np.array([paper[name] for name in measured if name in paper])
      axes.bar(places, published, width, facecolor='white', edgecolor=theme.VERMILLION, hatch='///', label=paper_label)
      for place, value in zip(places, published, strict=True):
        _write_value(axes, place, value, value)
    axes.set_xticks(x, [textwrap.fill(name, max(10, 72 // len(values))) for name in measured])
    axes.tick_params(axis='x', length=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, *baselines.values()), max(high, *baselines.values()) * 1.08)
    axes.set_ylabel(y_label)
    _draw_baselines(axes, baselines)
    if paper or seeds > 1:
      figure.legend(loc='outside lower left', ncols=2)
  parts = [f'{name} {m:.4g}' + (f' (paper {paper[name]:.4g})' if name in paper else '')
           for name, m in zip(measured, middle, strict=True)]  # fmt: skip
  beside = ', '.join(f'{name} {value:.4g}' for name, value in baselines.items())
  return theme.describe(figure, f'{title}. {y_label}: {", ".join(parts)}. Baselines: {beside}.')


def ranked_bars(
  panels: Mapping[str, Mapping[str, Number]],
  *,
  ours: str,
  title: str,
  x_label: str,
  notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Figure:
  """What a model has against all that needs none: horizontal bars, the smallest on top, in one panel a task.

  Args:
    panels: panel title -> name -> value, fewer is better; one panel may have no title.
    ours: the name whose bars stand out.
    notes: panel title -> name -> words behind the value.

  Raises:
    ValueError: if the model or what it is compared with is missing from a panel.
  """
  if not panels or any(ours not in values or len(values) < 2 for values in panels.values()):
    raise ValueError(f'Every panel needs a bar {ours!r} and one to compare with; got {[*map(list, panels.values())]}.')
  with theme.use_theme():
    tallest = max(map(len, panels.values()))
    figure = theme.new_figure(1.2 + 0.3 * tallest + (0.2 if len(panels) > 1 else 0), title=title)
    parts = []
    for axes, (panel, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
      ranked = sorted(values, key=values.get)
      colours = [theme.VERMILLION if name == ours else theme.BLUE for name in ranked]
      bars = axes.barh(ranked, [values[name] for name in ranked], color=colours)
      behind = (notes or {}).get(panel, {})
      labels = [f'{values[name]:.2f} {behind.get(name, "")}'.strip() for name in ranked]
      axes.bar_label(bars, labels, padding=3, fontsize=9)
      axes.set(title=panel, xlabel=x_label)
      axes.set_ylim(tallest - 0.5, -0.5)  # a bar is as high in every panel
      axes.margins(x=0.8 if behind else 0.12)
      parts.append(', '.join(f'{name} {label}' for name, label in zip(ranked, labels, strict=True)))
  words = '; '.join(f'{panel}: {part}' if panel else part for panel, part in zip(panels, parts, strict=True))
  return theme.describe(figure, f'{title}. {x_label}, the smallest first: {words}.')


def _write_value(axes: Axes, x: Number, value: Number, top: Number) -> None:
  box = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.8}
  axes.annotate(
    f'{value:.4g}', (x, top), xytext=(0, 4), textcoords='offset points', ha='center', fontsize=9, bbox=box, zorder=4
  )
