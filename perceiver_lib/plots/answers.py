"""What models write, beside how they learned it: loss curves above, answers character by character below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from perceiver_lib.plots.curves import Curve

LEAST_LOSS = 1e-7
"""Where a loss of zero stands on the logarithmic axis."""


def losses_and_answers(
  losses: Mapping[str, Curve],
  right: Mapping[str, float],
  answers: Mapping[str, Sequence[str]],
  truth: str,
  *,
  title: str,
  y_label: str,
  bar_label: str,
) -> Figure:
  """Losses by name on a logarithmic axis, bars of how much is right, and a table whose wrong characters are red.

  Args:
    losses: name -> (steps, losses); losses below `LEAST_LOSS` are drawn at it.
    right: name -> percent.
    answers: heading -> one text a row; the column `truth` says what is right, those after it are compared with it.
    bar_label: the quantity of the bars.
  """
  headings, rows = list(answers), len(answers[truth])
  with theme.use_theme():
    figure = theme.new_figure(3.0 + 0.2 * (rows + 2), title=title)
    above, below = figure.subfigures(2, 1, height_ratios=[2.6, 0.2 * (rows + 2)])
    axes, bars = above.subplots(1, 2, width_ratios=[1.2, 1])
    for (name, (steps, values)), colour in zip(losses.items(), theme.PALETTE, strict=False):
      axes.plot(steps, np.maximum(values, LEAST_LOSS), 'o-', markersize=4, color=colour, label=name)
    axes.set(yscale='log', xlabel='training step', ylabel=y_label, ylim=(LEAST_LOSS * 0.7, None))
    axes.legend(loc='best')
    colours = [*theme.PALETTE[: len(losses)], *[theme.GREY] * len(right)]
    drawn = bars.barh(list(right), list(right.values()), color=colours[: len(right)])
    bars.bar_label(drawn, fmt='%.1f', padding=3, fontsize=9)
    bars.set(xlabel=bar_label, xlim=(0, 118))
    bars.invert_yaxis()
    table = below.subplots()
    theme.hide_ticks(table)
    widths = [max(len(text) for text in (heading, *answers[heading])) + 3 for heading in headings]
    starts = np.concatenate([[0], np.cumsum(widths)])
    table.set(xlim=(0, starts[-1]), ylim=(rows + 0.5, -1))
    for start, heading in zip(starts[:-1], headings, strict=True):
      table.text(start, -0.2, heading, fontsize=9, weight='bold', va='center')
      compared = headings.index(heading) > headings.index(truth)
      for row, text in enumerate(answers[heading]):
        for place, character in enumerate(text):
          wrong = compared and answers[truth][row][place : place + 1] != character
          look = {'color': theme.VERMILLION, 'weight': 'bold'} if wrong else {'color': theme.BLACK}
          look |= {'family': 'monospace', 'fontsize': 9, 'ha': 'center'}
          # Hundreds of characters inside their axes need no layout, which would take seconds.
          table.text(start + place + 0.5, row + 1, character, **look).set_in_layout(False)
  ends = ', '.join(f'{name} ends at {values[-1]:.4f}' for name, (_, values) in losses.items())
  shares = ', '.join(f'{name} {value:.1f}' for name, value in right.items())
  first = '; '.join(f'{heading} {answers[heading][0]}' for heading in headings)
  return theme.describe(figure, f'{title}. {y_label}: {ends}. {bar_label}: {shares}. First row: {first}.')
