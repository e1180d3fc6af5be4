"""Scenes with what is said of them, and below each where somebody looked."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Num

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def scene_columns(
  images: Num[np.ndarray, 'k y x'],
  words: Sequence[str],
  *,
  title: str,
  right: Sequence[bool] | None = None,
  maps: Mapping[str, Float[np.ndarray, 'k v u']] | None = None,
) -> Figure:
  """A column a scene: the picture under its words, and maps over it by name, each from zero to its own highest.

  Args:
    words: what stands above each picture; vermillion where it is not `right`.
    right: None = all are.
    maps: on any grid over the whole picture.
  """
  maps, right = maps or {}, [True] * len(images) if right is None else right
  width = (theme.NOTEBOOK_WIDTH - 0.8) / len(images)
  lines = [textwrap.fill(said, int(width / 0.07)) for said in words]
  tallest = max(said.count('\n') for said in lines) + 1
  with theme.use_theme():
    figure = theme.new_figure(0.6 + 0.17 * tallest + (1 + len(maps)) * (width + 0.1), title=title)
    grid = figure.subplots(1 + len(maps), len(images), squeeze=False)
    for axes in grid.flat:
      axes.set(xticks=[], yticks=[])
    for axes, image, said, good in zip(grid[0], images, lines, right, strict=True):
      axes.imshow(image, cmap='gray')
      axes.set_title(said, fontsize=9, color=theme.BLACK if good else theme.VERMILLION)
    extent = (-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5)
    for row, (name, values) in zip(grid[1:], maps.items(), strict=True):
      row[0].set_ylabel(name, fontsize=9)
      for axes, image, where in zip(row, images, values, strict=True):
        axes.imshow(where, cmap=theme.SEQUENTIAL, vmin=0, extent=extent)
        axes.contour(image, levels=[127], colors='white', linewidths=0.6)
  said = '; '.join(f'{said}{"" if good else " (wrong)"}' for said, good in zip(words, right, strict=True))
  below = f' Below each: {", ".join(maps)}.' if maps else ''
  return theme.describe(figure, f'{title}. {len(images)} scenes: {said}.{below}')
