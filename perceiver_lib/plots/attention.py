"""Attention maps a person can read: beside the image that was attended to, over the characters of a text, by head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme
from perceiver_lib.plots.grid import map_grid

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def _row_sums(weights: np.ndarray) -> str:
  """What the rows sum to: 1 everywhere but for fully masked rows, which sum to 0; anything else is a fault to see."""
  sums = np.asarray(weights, np.float64).sum(axis=-1).ravel()
  if math.isclose(sums.min(), sums.max(), abs_tol=5e-4):
    return f'each row sums to {sums.mean():.3f}'
  return f'rows sum to {sums.min():.3f} ... {sums.max():.3f}'


def _finite(values: np.ndarray, name: str) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if not values.size or not np.isfinite(values).all():
    raise ValueError(
      f'{name} must hold finite numbers and at least one; got shape {values.shape} with NaN or infinity.'
    )
  return values


def image_maps(
  image: np.ndarray,
  maps: np.ndarray,
  *,
  title: str,
  pre_softmax: bool = False,
  names: Sequence[str] | None = None,
  columns: int = 6,
) -> Figure:
  """The input image, and beside it one map a latent: weights on one shared colour scale, logits each on its own.

  The Perceiver paper (arXiv 2103.03206, figure 3) shows the logits before the softmax, because the weights are "very
  sparse and hard to interpret", next to the image rather than over it.

  Args:
    image: [height, width] or [height, width, 3], any range.
    maps: [k, map height, map width], or [k, height * width] in row-major order of the image's pixels.
    pre_softmax: the maps are scaled logits, not weights; without it the sum of each map is printed, for weights 1.
    names: of the k maps; 'latent 0', 'latent 1', ... by default.

  Raises:
    ValueError: if the maps do not fit the image, or hold NaN or infinity.
  """
  image, maps = _finite(image, 'image'), _finite(maps, 'maps')
  if maps.ndim == 2 and maps.shape[1] == math.prod(image.shape[:2]):
    maps = maps.reshape(-1, *image.shape[:2])
  if maps.ndim != 3:
    raise ValueError(
      f'maps must be [k, height, width], or [k, {math.prod(image.shape[:2])}] for an image of '
      f'{image.shape[0]} x {image.shape[1]} pixels; got shape {maps.shape}.'
    )
  names = [f'latent {i}' for i in range(len(maps))] if names is None else names
  low, high = (maps.min(), maps.max()) if pre_softmax else (0.0, maps.max())
  quantity = 'logit (own scale)' if pre_softmax else 'attention weight'
  if not pre_softmax:
    names = [f'{name}\nsum {values.sum():.3f}' for name, values in zip(names, maps, strict=True)]
  figure, _ = map_grid(
    list(maps),
    names,
    title=title,
    label=quantity,
    columns=columns,
    limits=(low, high),
    own_scales=pre_softmax,
    input_image=image,
  )
  alt = f'{title}. The input image beside {len(maps)} maps of the {quantity}, from {low:.3g} to {high:.3g}.'
  return theme.describe(figure, alt)


def text_heat(
  text: str | Sequence[str],
  weights: np.ndarray,
  *,
  title: str,
  query_names: Sequence[str] | None = None,
  characters_per_line: int = 64,
) -> Figure:
  """A text once for each query, each character on a background as dark as its attention weight.

  Colour is the weight divided by the query's largest, as in figure 7 of the Perceiver IO paper (arXiv 2107.14795); the
  largest weight and the row sum are printed, since the division hides both.

  Args:
    text: m characters, or m short strings (one a token or byte).
    weights: [q, m] or [m].

  Raises:
    ValueError: if text and weights differ in length, or a weight is negative, NaN or infinite.
  """
  from matplotlib.patches import Rectangle

  weights = np.atleast_2d(_finite(weights, 'weights'))
  if weights.ndim != 2 or weights.shape[1] != len(text):
    raise ValueError(f'weights must be [queries, {len(text)}], one for each character; got shape {weights.shape}.')
  if (weights < 0).any():
    raise ValueError(f'weights must not be negative; got {weights.min():.3g}. Logits have no zero to shade from.')
  names = [f'query {i}' for i in range(len(weights))] if query_names is None else query_names
  symbols = [{'\n': '↵', '\t': '→', '\r': '␍', '\0': '␀'}.get(c, c if c.isprintable() else '�') for c in text]
  per_line = min(characters_per_line, len(symbols))
  lines = math.ceil(len(symbols) / per_line)
  with theme.use_theme():
    cell = (theme.NOTEBOOK_WIDTH - 0.8) / per_line
    height = min(1.75 * cell, 0.3)
    figure = theme.new_figure(len(weights) * (lines * height + 0.32) + 0.9, title=title)
    for axes, name, row in zip(figure.subplots(len(weights), 1, squeeze=False)[:, 0], names, weights, strict=True):
      axes.set(xlim=(0, per_line), ylim=(lines, 0))
      theme.hide_ticks(axes)
      axes.set_title(f'{name}: largest weight {row.max():.3f}, sum {row.sum():.3f}', fontsize=9, pad=3)
      for index, (symbol, value) in enumerate(zip(symbols, row / (row.max() or 1.0), strict=True)):
        y, x = divmod(index, per_line)
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=_shade(value), edgecolor='none'))
        colour = 'white' if value > 0.9 else 'black'
        size = float(np.clip(72 * cell * 1.1, 9, 12))
        axes.text(x + 0.5, y + 0.52, symbol, family='monospace', fontsize=size, color=colour, ha='center', va='center')
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    shades = ScalarMappable(cmap=ListedColormap([_shade(value) for value in np.linspace(0, 1, 64)]))
    figure.colorbar(shades, ax=figure.axes, label='weight /\nlargest', aspect=12, pad=0.02, shrink=0.8)
  peaks = ', '.join(f'{n} looks most at {symbols[int(r.argmax())]!r}' for n, r in zip(names, weights, strict=True))
  return theme.describe(figure, f'{title}. A text shaded by attention weight: {peaks}.')


def _shade(value: float | np.floating) -> tuple[float, float, float]:
  """White at 0 to the palette's blue at 1: text on it stays readable, which no map that starts dark allows."""
  blue = np.array([int(theme.BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return tuple(1.0 - value * (1.0 - blue))


def head_grid(
  weights: np.ndarray,
  *,
  title: str,
  pre_softmax: bool = False,
  x_label: str = 'key',
  y_label: str = 'query',
  columns: int = 4,
  key_names: Sequence[str] | None = None,
) -> Figure:
  """Queries by keys for every head [h, i, j], on one shared colour scale, with the row sums of the weights.

  Args:
    key_names: written under the keys, one each, instead of some of their numbers.
  """
  weights = _finite(weights, 'weights')
  if weights.ndim != 3:
    raise ValueError(f'weights must be [heads, queries, keys] of one example; got shape {weights.shape}.')
  low, high = (weights.min(), weights.max()) if pre_softmax else (0.0, weights.max())
  quantity = 'logit before the softmax' if pre_softmax else 'attention weight'
  figure, places = map_grid(
    list(weights),
    [f'head {head}' for head in range(len(weights))],
    title=title,
    label=quantity,
    columns=columns,
    limits=(low, high),
    square=False,
    x_label=x_label + ('' if pre_softmax else f'  ({_row_sums(weights)})'),
    y_label=y_label,
  )
  for axes in places if key_names else []:
    axes.set_xticks(range(len(key_names)), key_names)
  size = f'{weights.shape[1]} queries by {weights.shape[2]} keys'
  return theme.describe(figure, f'{title}. {len(weights)} heads, {size}; {quantity} from {low:.3g} to {high:.3g}.')
