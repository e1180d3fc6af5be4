"""Maps in a grid with one colour bar: what pictures of attention, of voices and of alignments are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Num

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure


def map_grid(
  maps: Sequence[Num[np.ndarray, 'i j']],
  names: Sequence[str],
  *,
  title: str,
  label: str,
  columns: int,
  limits: tuple[float, float] | None = None,
  own_scales: bool = False,
  input_image: np.ndarray | None = None,
  square: bool = True,
  x_label: str = '',
  y_label: str = '',
  panel_height: float | None = None,
  width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
  """Maps and their names, row by row. The caller marks what there is to see, and describes the figure.

  Args:
    label: the quantity on the colour bar.
    limits: of the one colour scale; None = from zero to the largest value.
    own_scales: every map has a scale of its own, from its lowest to its highest, or about zero where it goes below
      zero; the bar has no numbers then.
    input_image: what the maps are over, any range; it stands to the left, and no panel has ticks.
    square: cells are square; else maps fill their places, which are 0.5 to 1.5 times as high as wide.
    x_label, y_label: of all panels.
    panel_height: of one map with its name, in inches; None = by the shape of the maps.

  Returns:
    The figure, and the axes of the maps in their order.
  """
  columns = min(columns, len(maps))
  rows, beside = math.ceil(len(maps) / columns), int(input_image is not None)
  if limits is None:
    limits = 0.0, max(float(values.max()) for values in maps)
  if panel_height is None:
    ratio = maps[0].shape[0] / maps[0].shape[1]
    width = (theme.NOTEBOOK_WIDTH - 1.5) / (columns + beside)
    panel_height = width * (ratio if square else float(np.clip(ratio, 0.5, 1.5))) + 0.17 * names[0].count('\n') + 0.3
  with theme.use_theme():
    figure = theme.new_figure(rows * panel_height + 0.7, title=title)
    widths = [1] * beside + list(width_ratios or [1] * columns)
    grid = figure.subplots(rows, columns + beside, squeeze=False, width_ratios=widths)
    if beside:
      for axes in grid.flat:
        theme.hide_ticks(axes)
        axes.set_anchor('NW')
      grid[0, 0].imshow((input_image - input_image.min()) / (np.ptp(input_image) or 1.0), cmap='gray')
      grid[0, 0].set_title('input', fontsize=9)
      for axes in grid[1:, 0]:
        axes.set_visible(False)
    places = list(grid[:, beside:].flat)
    for axes in places[len(maps) :]:
      axes.set_visible(False)
    for number, (axes, values, name) in enumerate(zip(places, maps, names, strict=False)):
      low, high = (values.min(), values.max()) if own_scales else limits
      signed = own_scales and low < 0
      if signed:
        low, high = -np.abs(values).max(), np.abs(values).max()
      aspect = 'equal' if square else 'auto'
      colours = theme.DIVERGING if signed else theme.SEQUENTIAL
      drawn = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect=aspect)
      axes.set_title(name, fontsize=9)
      if not beside:
        axes.locator_params(nbins=5, integer=True)
        # Every column's lowest map carries the numbers, also above an empty place.
        axes.tick_params(labelsize=9, labelleft=number % columns == 0, labelbottom=number + columns >= len(maps))
    bar = figure.colorbar(drawn, ax=places, label=label, aspect=25, shrink=0.9)
    if own_scales:
      bar.set_ticks([low, 0, high], labels=['–', '0', '+']) if signed else bar.set_ticks([])
    if x_label:
      figure.supxlabel(x_label, fontsize=10)
    if y_label:
      figure.supylabel(y_label, fontsize=10)
  return figure, places[: len(maps)]
