"""Cost against size: panels of measured lines with fits and predictions, and dots of ratios with their spread."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_MARKERS = 'os^Dvp*'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """One thing against its size.

  Attributes:
    x, y: sizes and values; a list of values for a size is drawn as its median, with whiskers from end to end.
    predicted: drawn dotted and hollow: what was not measured.
    like: name of the line whose colour and marker it shares.
    marked: sizes whose points carry a ring.
    power: (exponent, value at size 1) of a fit, drawn from `fitted_from` on.
  """

  x: Sequence[float]
  y: Sequence[float | Sequence[float]]
  predicted: bool = False
  like: str = ''
  marked: Sequence[float] = ()
  power: tuple[float, float] | None = None
  fitted_from: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """One pair of axes, its lines by name."""

  x_label: str
  y_label: str
  lines: Mapping[str, Line]
  log_x: bool = True
  log_y: bool = True


def cost_panels(panels: Sequence[Panel], *, title: str, columns: int = 2, height: float = 3.1) -> Figure:
  """Panels beside each other; a name has one colour in all of them, and one legend.

  Raises:
    ValueError: without a panel or a line.
  """
  if not panels or not all(panel.lines for panel in panels):
    raise ValueError('Pass at least one panel, each with at least one line.')
  named = {name: line for panel in panels for name, line in panel.lines.items()}
  colours = list(dict.fromkeys(line.like or name for name, line in named.items()))
  with theme.use_theme():
    rows = -(-len(panels) // columns)
    figure = theme.new_figure(height * rows + 0.8, title=title)
    for number, panel in enumerate(panels):
      axes = figure.add_subplot(rows, min(columns, len(panels)), number + 1)
      for name, line in panel.lines.items():
        _draw(axes, name, line, colours.index(line.like or name))
      if panel.log_x:
        axes.set_xscale('log', base=2)
        _name_powers(axes, [x for line in panel.lines.values() for x in line.x])
      axes.margins(y=0.12)
      if panel.log_y:
        axes.set_yscale('log')
        _name_decades(axes)
      else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
      axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
      axes.grid(color=theme.PALE, linewidth=0.8)
      axes.set_axisbelow(True)
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {text: handle for entry in entries for handle, text in entry}
    figure.legend(handles.values(), handles, loc='outside lower left', ncols=2 if len(handles) < 5 else 3)
  parts = [
    f'{panel.y_label} against {panel.x_label}: '
    + ', '.join(f'{name} {_middle(line)[0]:.3g} to {_middle(line)[-1]:.3g}' for name, line in panel.lines.items())
    for panel in panels
  ]
  return theme.describe(figure, f'{title}. {"; ".join(parts)}.')


def _middle(line: Line) -> np.ndarray:
  return np.array([np.median(value) for value in line.y])


def _draw(axes: Axes, name: str, line: Line, index: int) -> None:
  colour, middle = theme.PALETTE[index % len(theme.PALETTE)], _middle(line)
  spread = np.array([(m - np.min(value), np.max(value) - m) for m, value in zip(middle, line.y, strict=True)]).T
  axes.errorbar(
    line.x,
    middle,
    yerr=spread if spread.any() else None,
    fmt=_MARKERS[index % len(_MARKERS)] + (':' if line.predicted else '-'),
    color=colour,
    markersize=5,
    markerfacecolor='white' if line.predicted else colour,
    capsize=2.5,
    label=name,
  )
  rings = [place for place, x in enumerate(line.x) if x in line.marked]
  axes.scatter(np.array(line.x)[rings], middle[rings], s=130, facecolors='none', edgecolors=theme.BLACK, zorder=4)
  if line.power:
    exponent, start = line.power
    x = np.array([max(line.fitted_from, min(line.x)), max(line.x)], float)
    axes.plot(x, start * x**exponent, color=theme.BLACK, linewidth=1.1, linestyle=(0, (2, 1.5)), zorder=3)
    place = np.sqrt(x[0] * x[1]), start * np.sqrt(x[0] * x[1]) ** exponent
    axes.annotate(
      f'M$^{{{exponent:.2f}}}$', place, xytext=(-2, 6), textcoords='offset points', ha='right', color=colour
    )


def _name_decades(axes: Axes) -> None:
  """Ticks at powers of ten, more of them where less than three decades are shown, so that no axis has a single one."""
  from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

  low, high = axes.get_ylim()
  decades = LogLocator(subs=(1.0, 2.0, 5.0) if high < 1_000 * low else (1.0,), numticks=20)
  axes.yaxis.set_major_locator(decades if high > 10 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:,.0f}' if y >= 10 else f'{y:g}'))
  axes.yaxis.set_minor_locator(NullLocator())


def _name_powers(axes: Axes, sizes: Sequence[float]) -> None:
  """Ticks at some of the sizes, written as people say them: 64, 1k, 1M."""
  ticks = np.unique(sizes)
  ticks = ticks[:: -(-len(ticks) // 6)]
  axes.set_xticks(ticks, [size_name(float(tick)) for tick in ticks])
  axes.minorticks_off()


def size_name(size: float) -> str:
  """1024 -> '1k', 2^20 -> '1M'; other numbers as they are."""
  for unit, suffix in ((2**20, 'M'), (2**10, 'k')):
    if size >= unit and size % unit == 0:
      return f'{int(size // unit)}{suffix}'
  return f'{size:g}'


def ratio_dots(
  rows: Mapping[str, Mapping[str, Sequence[float]]],
  *,
  title: str,
  x_label: str,
  reference: float,
  reference_label: str,
  tie: float | None = None,
  log: bool = False,
) -> Figure:
  """A row for each name, in it a dot for each kind of measurement, against one vertical line.

  Args:
    rows: name -> kind -> one value or several, drawn as their median with a whisker from end to end. The first kind has
      its number above the dot, others below.
    reference: where the line stands; reference_label says what it is.
    tie: values within this factor of the reference are shaded as ties.
    log: a logarithmic axis.

  Raises:
    ValueError: if there is no row.
  """
  if not rows:
    raise ValueError('Pass at least one row.')
  kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
  with theme.use_theme():
    figure = theme.new_figure(0.46 * len(rows) + 1.6, title=title)
    axes = figure.add_subplot()
    for number, kind in enumerate(kinds):
      places = [place for place, row in enumerate(rows.values()) if kind in row]
      values = [row[kind] for row in rows.values() if kind in row]
      middle, style = np.array([np.median(value) for value in values]), {'color': theme.PALETTE[number]}
      spread = np.array([(m - np.min(value), np.max(value) - m) for m, value in zip(middle, values, strict=True)]).T
      axes.errorbar(middle, places, xerr=spread, fmt=_MARKERS[number], capsize=2.5, elinewidth=1.3, label=kind, **style)
      above = {'xytext': (0, 5), 'va': 'bottom'} if number == 0 else {'xytext': (0, -5), 'va': 'top'}
      for place, value in zip(places, middle, strict=True):
        where = {'textcoords': 'offset points', 'ha': 'center', 'fontsize': 9}
        axes.annotate(f'{value:.2f}', (value, place), **above, **where, **style)
    axes.axvline(reference, color=theme.BLACK, linestyle=(0, (4, 3)), linewidth=1.3, label=reference_label)
    if tie:
      axes.axvspan(reference / tie, reference * tie, color=theme.PALE, zorder=0, label=f'within {tie:g}x: a tie')
    if log:
      axes.set_xscale('log', base=2)
      axes.xaxis.set_major_formatter('{x:g}')
    else:
      axes.set_xlim(left=0.0)
    axes.margins(x=0.06, y=0.06)
    axes.set_yticks(range(len(rows)), [textwrap.fill(name, 42) for name in rows])
    axes.invert_yaxis()
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='y', color=theme.PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label)
    figure.legend(loc='outside lower left', ncols=4)
  parts = ', '.join(
    f'{name}, {kind} {np.median(value):.2f}' for name, row in rows.items() for kind, value in row.items()
  )
  return theme.describe(figure, f'{title}. {x_label}: {parts}. Line: {reference_label}, {reference:g}.')
