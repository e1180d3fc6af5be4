"""Attention maps side by side: reads beside the image, a query pixel in both frames, matrices, profiles, deletions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Num

from perceiver_lib.plots import theme
from perceiver_lib.plots.grid import map_grid

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def read_rows(
  image: Num[np.ndarray, 'h w'], rows: Mapping[str, Float[np.ndarray, 'k h w']], *, title: str, names: Sequence[str]
) -> Figure:
  """The input, and under each other the logits of the same k latents in several reads; every panel has its own scale.

  So the Perceiver paper shows maps (2103.03206, Figs. 3, 7 to 15): before the softmax, beside the image, not over it.
  """
  figure, places = map_grid(
    [values for maps in rows.values() for values in maps],
    [*names, *[''] * (len(rows) - 1) * len(names)],
    title=title,
    label='logit before the softmax,\neach panel from its lowest to its highest',
    columns=len(names),
    own_scales=True,
    input_image=image,
  )
  for axes, read in zip(places[:: len(names)], rows, strict=True):
    axes.set_ylabel(read, rotation=0, ha='right', va='center', fontsize=9)
  return theme.describe(figure, f'{title}. The input beside {len(names)} latents in each of {", ".join(rows)}.')


def panels(
  maps: Mapping[str, Float[np.ndarray, 'i j']],
  *,
  title: str,
  label: str,
  x_label: str,
  y_label: str,
  columns: int = 5,
  square: bool = True,
  x_labels: Sequence[str] | None = None,
) -> Figure:
  """Matrices by name, queries down and keys across, on one colour scale from zero.

  Args:
    label: the quantity on the colour bar.
    square: cells are square; else every panel fills the same place.
    x_labels: one a panel, in place of `x_label`.
  """
  figure, places = map_grid(
    [*maps.values()],
    [*maps],
    title=title,
    label=label,
    columns=columns,
    square=square,
    x_label='' if x_labels else x_label,
    y_label=y_label,
  )
  for axes, own_label in zip(places, x_labels or [], strict=False):
    axes.set_xlabel(own_label, fontsize=9)
    axes.tick_params(labelbottom=True)
  highest = max(float(values.max()) for values in maps.values())
  return theme.describe(figure, f'{title}. {label} from 0 to {highest:.3g} in {len(maps)} panels: {", ".join(maps)}.')


def profiles(
  curves: Sequence[tuple[str, Num[np.ndarray, 'd'], Float[np.ndarray, 'h d']]], *, title: str, y_label: str
) -> Figure:
  """Mean attention of every head against an offset: one panel for each way to count it, (axis name, offsets, means)."""
  with theme.use_theme():
    figure = theme.new_figure(3.2, title=title)
    grid = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (name, offsets, means) in zip(grid, curves, strict=True):
      for head, (mean, colour) in enumerate(zip(means, theme.PALETTE, strict=False)):
        axes.plot(offsets, mean, color=colour, label=f'head {head}', linewidth=1.4)
      axes.set_xlabel(name)
    grid[0].set_ylabel(y_label)
    grid[0].legend(ncols=2)
  peaks = '; '.join(
    f'{name}: at most {means.max():.2f}, at {offsets[means.max(0).argmax()]}' for name, offsets, means in curves
  )
  return theme.describe(figure, f'{title}. {y_label}. {peaks}.')


def deletions(
  results: Mapping[str, tuple[Sequence[int], Mapping[str, Float[np.ndarray, 'k']]]], *, title: str, y_label: str
) -> Figure:
  """How answers fare while inputs are taken away: a panel a model, (counts, name of the order -> quality)."""
  with theme.use_theme():
    figure = theme.new_figure(3.0, title=title)
    grid = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    styles = (
      (theme.VERMILLION, '-', 'o'),
      (theme.GREEN, '-.', 'D'),
      (theme.BLACK, '--', 's'),
      (theme.BLUE, ':', '^'),
    )
    for axes, (name, (counts, curves)) in zip(grid, results.items(), strict=True):
      for (order, values), (colour, line, marker) in zip(curves.items(), styles, strict=True):
        axes.plot(counts, values, line, color=colour, marker=marker, markersize=4, label=order)
      axes.set_title(name, fontsize=9)
      axes.set_xlabel('inputs hidden')
      axes.set_ylim(0, 1.02)
    grid[0].set_ylabel(y_label)
    figure.legend(*grid[0].get_legend_handles_labels(), loc='outside lower left', ncols=4)
  ends = '; '.join(
    f'{name}: ' + ', '.join(f'{order} {values[-1]:.2f}' for order, values in curves.items())
    for name, (_, curves) in results.items()
  )
  return theme.describe(figure, f'{title}. {y_label} after the last deletion: {ends}.')
