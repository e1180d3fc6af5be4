"""Clips of pictures and sounds as rows, and what one aim of a training costs the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_FRAMES = 4
_GAP = 1


def clip_rows(
  columns: Mapping[str, Float[np.ndarray, 'n t y x'] | Float[np.ndarray, 'n run band']],
  rows: Sequence[str],
  *,
  title: str,
) -> Figure:
  """One row a clip and one column a picture or sound of it: four frames of a video, or a spectrum with low bands below.

  Args:
    columns: heading -> videos in [0, 1], or spectra, which share one scale.
    rows: what stands at the left of each clip.
  """
  sounds = [array for array in columns.values() if array.ndim == 3]
  limits = {'vmin': min(map(np.min, sounds)), 'vmax': max(map(np.max, sounds))} if sounds else {}
  widths = [_FRAMES if array.ndim == 4 else 1.5 for array in columns.values()]
  with theme.use_theme():
    figure = theme.new_figure(0.62 * len(rows) + 0.8, title=title)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, width_ratios=widths)
    for column, (heading, array) in enumerate(columns.items()):
      grid[0, column].set_title(heading, fontsize=9)
      for row in range(len(rows)):
        axes = grid[row, column]
        theme.hide_ticks(axes)
        if array.ndim == 4:
          axes.imshow(_strip(array[row]), cmap='gray', vmin=0, vmax=1)
        else:
          axes.imshow(array[row].T, cmap=theme.SEQUENTIAL, origin='lower', aspect='auto', **limits)
    for axes, name in zip(grid[:, 0], rows, strict=True):
      axes.set_ylabel(name, rotation=0, ha='right', va='center', fontsize=9)
  return theme.describe(figure, f'{title}. Columns: {", ".join(columns)}. Rows: {", ".join(rows)}.')


def _strip(video: Float[np.ndarray, 't y x']) -> Float[np.ndarray, 'y frames']:
  """Some frames side by side, with white lines between them."""
  chosen = video[np.linspace(0, len(video) - 1, _FRAMES).astype(int)]
  padded = np.pad(np.clip(chosen, 0, 1), ((0, 0), (0, 0), (0, _GAP)), constant_values=1)
  return np.concatenate(list(padded), axis=1)[:, :-_GAP]


def trade_off(
  measured: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  paper: Mapping[str, tuple[float, float]],
  *,
  title: str,
  x_label: str,
  y_label: str,
) -> Figure:
  """Two aims against each other: a point a seed, a line through the means; the paper's points beside, on own axes.

  Args:
    measured: setting, in order, -> values of x and y over seeds.
    paper: setting -> (x, y).
  """
  with theme.use_theme():
    figure = theme.new_figure(3.4, title=title)
    axes, published = figure.subplots(1, 2, width_ratios=[1.6, 1])
    middle = np.array([np.mean(values, axis=1) for values in measured.values()])
    axes.plot(*middle.T, color=theme.BLUE)
    for (name, values), place in zip(measured.items(), middle, strict=True):
      axes.plot(*values, 'o', color=theme.BLUE, markersize=5)
      axes.annotate(name, place, xytext=(7, 5), textcoords='offset points', fontsize=9)
    axes.set(title='here, one point a seed', xlabel=x_label, ylabel=y_label)
    published.plot(*zip(*paper.values(), strict=True), 's-', color=theme.VERMILLION)
    for name, place in paper.items():
      published.annotate(name, place, xytext=(7, 5), textcoords='offset points', fontsize=9)
    published.set(title='paper, Kinetics', xlabel=x_label)
    for one in (axes, published):
      one.margins(x=0.25, y=0.15)
  points = '; '.join(f'{name} {x:.2f}, {y:.1f}' for name, (x, y) in zip(measured, middle, strict=True))
  return theme.describe(figure, f'{title}. {x_label} and {y_label} by label weight: {points}.')
