"""Numbers on a score: one cell a voice and time step, in panels with one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme
from perceiver_lib.plots.grid import map_grid
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
  own_scales: bool = False,
) -> Figure:
  """Matrices [4 voices, time steps], two panels a row; cells that are exactly zero stay hatched.

  Args:
    panels: {caption: values, none below zero}.
    label: the quantity, beside the colour scale.
    own_scales: see `map_grid`.
    marks: (voice, time step) of a cell marked in each panel, such as the one that is predicted.

  Raises:
    ValueError: if a panel has another number of voices, or nothing is above zero.
  """
  values = np.concatenate([np.ravel(panel) for panel in panels.values()])
  if any(np.ndim(panel) != 2 or len(panel) != len(VOICE_NAMES) for panel in panels.values()) or not values.max() > 0:
    raise ValueError('voice_maps needs matrices [4 voices, steps] with something above zero.')
  figure, places = map_grid(
    [np.ma.masked_equal(panel, 0) for panel in panels.values()],
    [*panels],
    title=title,
    label=label,
    columns=2,
    panel_height=1.5,
    square=False,
    own_scales=own_scales,
    x_label=x_label,
  )
  for axes in places:
    axes.patch.set(hatch='///', edgecolor=theme.GREY, facecolor='white')
    axes.set_yticks(range(len(VOICE_NAMES)), VOICE_NAMES)
    for voice, step in marks:
      box = {'facecolor': 'white', 'edgecolor': theme.VERMILLION, 'boxstyle': 'circle'}
      axes.text(step, voice, '?', ha='center', va='center', fontweight='bold', color=theme.VERMILLION, bbox=box)
  largest = '; '.join(f'{caption}: {_place(panel)}' for caption, panel in panels.items())
  return theme.describe(figure, f'{title}. {label} by voice and {x_label}, largest at {largest}.')


def _place(panel: np.ndarray) -> str:
  voice, step = np.unravel_index(np.argmax(panel), panel.shape)
  return f'{VOICE_NAMES[voice]} {step}'
