"""A predicted frame beside the last and the next one, and where it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def next_frame(
  last: UInt8[np.ndarray, 'y x c'],
  truth: UInt8[np.ndarray, 'y x c'],
  predicted: UInt8[np.ndarray, 'y x c'],
  *,
  title: str,
) -> Figure:
  """The last frame, the next, the predicted one, and the errors of copying and of the prediction, both on one scale."""
  errors = [np.abs(image.astype(np.float32) - truth.astype(np.float32)).mean(-1) for image in (last, predicted)]
  with theme.use_theme():
    figure = theme.new_figure(3.3, title=title)
    grid = figure.subplots(2, 3)
    pictures = (('last frame', last), ('next frame', truth), ('predicted', predicted))
    for axes, (name, picture) in zip(grid[0], pictures, strict=True):
      axes.imshow(picture)
      axes.set_title(name)
    grid[1, 1].set_visible(False)
    for axes, name, error in zip((grid[1, 0], grid[1, 2]), ('copy', 'prediction'), errors, strict=True):
      drawn = axes.imshow(error, cmap=theme.SEQUENTIAL, vmin=0, vmax=max(map(np.max, errors)))
      axes.set_title(f'error of the {name}, mean {error.mean():.2f}')
    for axes in grid.ravel():
      theme.hide_ticks(axes)
    figure.colorbar(drawn, ax=grid[1, 2], label='mean |error| (bytes)', aspect=12)
  return theme.describe(figure, f'{title}. Mean error {errors[0].mean():.2f} of the copy, {errors[1].mean():.2f} here.')
