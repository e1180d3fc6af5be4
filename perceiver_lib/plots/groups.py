"""Bars in groups, each group with a baseline of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def grouped_bars(
  measured: Mapping[str, Mapping[str, float]],
  *,
  title: str,
  y_label: str,
  baselines: Mapping[str, float],
  baseline_label: str,
) -> Figure:
  """Bars of several methods for each of several questions, with a line across each group for its baseline.

  Args:
    measured: method -> group -> value; all methods have the same groups.
    y_label: the quantity and its unit.
    baselines: group -> value.
    baseline_label: what was done instead.

  Raises:
    ValueError: unless all methods and the baselines have the same groups.
  """
  groups = list(baselines)
  if not measured or not groups or any(set(values) != set(groups) for values in measured.values()):
    raise ValueError(
      f'Every method needs a value for each group that has a baseline, {groups}; '
      f'got { ({method: list(values) for method, values in measured.items()}) }.'
    )
  with theme.use_theme():
    figure = theme.new_figure(3.6, title=title)
    axes = figure.add_subplot()
    width, x = 0.8 / len(measured), np.arange(len(groups))
    for number, (method, values) in enumerate(measured.items()):
      places = x + (number - (len(measured) - 1) / 2) * width
      heights = [values[group] for group in groups]
      bars = axes.bar(places, heights, 0.92 * width, color=theme.PALETTE[number % len(theme.PALETTE)], label=method)
      # White behind the number, for a baseline may cross it.
      axes.bar_label(
        bars, fmt='%.3g', fontsize=9, padding=2, zorder=3, bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5}
      )
    for place, group in zip(x, groups, strict=True):
      line = axes.hlines(
        baselines[group], place - 0.41, place + 0.41, color='black', linestyle=(0, (4, 3)), linewidth=1.4
      )
      axes.annotate(f'{baselines[group]:.3g}', (place + 0.43, baselines[group]), fontsize=9, va='center')
    line.set_label(baseline_label)
    axes.set_xticks(x, [textwrap.fill(group, max(10, 72 // len(groups))) for group in groups])
    axes.tick_params(axis='x', length=0)
    axes.margins(y=0.1)
    axes.set_ylabel(y_label)
    figure.legend(loc='outside lower left', ncols=len(measured) + 1)
  parts = [
    f'{group}: ' + ', '.join(f'{method} {values[group]:.3g}' for method, values in measured.items())
    + f', {baseline_label} {baselines[group]:.3g}'
    for group in groups
  ]  # fmt: skip
  return theme.describe(figure, f'{title}. {y_label}. {"; ".join(parts)}.')
