"""Numbers on a score: one cell a voice and time step, in panels with one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme
from perceiver_lib.plots.music import VOICE_NAMES

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def voice_maps(
  panels: Mapping[str, np.ndarray],
  *,
  title: str,
  label: str,
  x_label: str,
  marks: Sequence[tuple[int, int]] = (),
) -> Figure:
  """Matrices [4 voices, time steps], two panels a row; cells that are exactly zero stay hatched.

  Args:
    panels: {caption: values, none below zero}.
    label: the quantity, beside the colour scale.
    marks: (voice, time step) of a cell marked in each panel, such as the one that is predicted.

  Raises:
    ValueError: if a panel has another number of voices, or nothing is above zero.
  """
  from matplotlib import colormaps

  values = np.concatenate([np.ravel(panel) for panel in panels.values()])
  if any(np.ndim(panel) != 2 or len(panel) != len(VOICE_NAMES) for panel in panels.values()) or not values.max() > 0:
    raise ValueError('voice_maps needs matrices [4 voices, steps] with something above zero.')
  with theme.use_theme():
    rows = -(-len(panels) // 2)
    figure = theme.new_figure(0.9 + 1.5 * rows, title=title)
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True, sharex=True)
    for axes in grid.ravel()[len(panels) :]:
      axes.set_visible(False)
    for axes, (caption, panel) in zip(grid.ravel(), panels.items(), strict=False):
      axes.patch.set(hatch='///', edgecolor=theme.GREY, facecolor='white')
      colours = colormaps[theme.SEQUENTIAL].with_extremes(bad=(0, 0, 0, 0))
      drawn = axes.imshow(np.ma.masked_equal(panel, 0), cmap=colours, vmin=0, vmax=values.max(), aspect='auto')
      for voice, step in marks:
        box = {'facecolor': 'white', 'edgecolor': theme.VERMILLION, 'boxstyle': 'circle'}
        axes.text(step, voice, '?', ha='center', va='center', fontweight='bold', color=theme.VERMILLION, bbox=box)
      axes.set(title=caption, yticks=range(len(VOICE_NAMES)), yticklabels=VOICE_NAMES)
      axes.locator_params(axis='x', integer=True)
    figure.supxlabel(x_label, fontsize=10)
    figure.colorbar(drawn, ax=list(grid.ravel()), label=label, aspect=25)
  largest = '; '.join(f'{caption}: {_place(panel)}' for caption, panel in panels.items())
  return theme.describe(figure, f'{title}. {label} by voice and {x_label}, largest at {largest}.')


def _place(panel: np.ndarray) -> str:
  voice, step = np.unravel_index(np.argmax(panel), panel.shape)
  return f'{VOICE_NAMES[voice]} {step}'
