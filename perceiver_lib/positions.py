"""Where a token is: grids of coordinates, Fourier features, and rotations of queries and keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Num

from perceiver_lib.settings import check_counts, check_numbers
from perceiver_lib.tokens import float_type


def grid(shape: Sequence[int], *, end_points: bool = True) -> Float[np.ndarray, 'm p']:
  """Coordinates in [-1, 1] of every cell of a grid, in row-major order.

  The two published grids differ, and released weights know the difference (deepmind-research `perceiver/`):

  Args:
    shape: cells along each axis, for example (height, width).
    end_points: True = linspace(-1, 1, n), the grid of every input and of full decoding (`position_encoding.py`);
      False = -1 + 2 i / n, which never reaches 1: the grid of sub-sampled output queries (`perceiver.py`).
  """
  axes = [np.linspace(-1, 1, n) if end_points else -1 + 2 * np.arange(n) / n for n in shape]
  return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, len(shape)).astype(float_type())


def indices(shape: Sequence[int]) -> np.ndarray:
  """Integer coordinates `[m, p]` of every cell of a grid, in row-major order."""
  return np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), axis=-1).reshape(-1, len(shape)).astype(np.int32)


def resampled(cells: Num[np.ndarray, '...'], shape: Sequence[int]) -> Float[np.ndarray, '...']:
  """A grid of vectors `[*cells along each axis, c]` on another number of cells: cubic convolution, axis by axis.

  The kernel (a = -3/4) at the centres of the new cells, a border that goes on for ever, and no smoothing where cells
  become fewer: OpenCV's INTER_CUBIC, with which deepmind-research resizes photographs, and "bicubic" of PyTorch, with
  which transformers takes a table of learned positions to another image size.
  """
  for axis, size in enumerate(shape):
    num_cells = cells.shape[axis]
    place = ((np.arange(size) + 0.5) * num_cells / size - 0.5)[:, None]
    near = np.floor(place).astype(int) + np.arange(-1, 3)
    x = np.abs(place - near)
    weights = np.where(x <= 1, (1.25 * x - 2.25) * x**2 + 1, -0.75 * (((x - 5) * x + 8) * x - 4))
    matrix = np.zeros((size, num_cells))
    np.add.at(matrix, (np.arange(size)[:, None], near.clip(0, num_cells - 1)), weights)
    cells = np.moveaxis(np.tensordot(matrix, cells, (1, axis)), 0, axis)
  return cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourierFeatures:
  """[position, sin(f pi x) of all axes, cos(f pi x) of all axes], f linear from 1 to the axis' Nyquist frequency.

  Order and frequencies of deepmind-research `perceiver/position_encoding.py` (Perceiver, section 3.2).

  Attributes:
    num_bands: frequencies an axis.
    max_resolution: cells along each axis at which the top band is the Nyquist frequency, for example (224, 224).
  """

  num_bands: int
  max_resolution: tuple[int, ...]

  def __post_init__(self):
    check_counts(self, 'num_bands', 'max_resolution')

  @property
  def num_channels(self) -> int:
    return len(self.max_resolution) * (2 * self.num_bands + 1)

  def __call__(self, position: Float[Array, 'b m p']) -> Float[Array, 'b m c']:
    """Raises a ValueError if positions have another number of axes than `max_resolution`."""
    if position.shape[-1] != len(self.max_resolution):
      raise ValueError(
        f'Fourier features over {len(self.max_resolution)} axes need positions [b, m, {len(self.max_resolution)}]; '
        f'got shape {position.shape}.'
      )
    position = position.astype(float_type())
    frequencies = np.stack([np.linspace(1.0, n / 2, self.num_bands) for n in self.max_resolution]).astype(float_type())
    angles = rearrange(
      position[..., None] * (float_type().type(math.pi) * frequencies)[None, None], 'b m p k -> b m (p k)'
    )
    return jnp.concatenate([position, jnp.sin(angles), jnp.cos(angles)], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
  """Fixed sines, then cosines, of a coordinate over wavelengths from 2 pi to 2 pi x base (Vaswani et al. 2017).

  The order and the series are those of `generate_sinusoidal_features` in perceiver-ar `perceiver_ar_model.py`.

  Attributes:
    num_channels: even, at least 4.
    base: ratio of the longest wavelength to the shortest.
  """

  num_channels: int
  base: float = 10_000.0

  def __post_init__(self):
    check_counts(self, 'num_channels')
    check_numbers(self, 'base', least=1)
    if self.num_channels < 4 or self.num_channels % 2:
      raise ValueError(f'Sinusoidal positions need an even number of channels, 4 or more; got {self.num_channels}.')

  def __call__(self, position: Num[Array, 'b m p']) -> Float[Array, 'b m c']:
    """Raises a ValueError unless positions have one axis."""
    if position.shape[-1] != 1:
      raise ValueError(f'Sinusoidal positions need positions [b, m, 1]; got shape {position.shape}.')
    num_bands = self.num_channels // 2
    frequencies = (self.base ** (-np.arange(num_bands) / (num_bands - 1))).astype(float_type())
    angles = position.astype(float_type()) * frequencies[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
  """Rotates pairs of query and key channels by an angle proportional to position (RoFormer, arXiv 2104.09864).

  Attributes:
    fraction: of each head's channels that rotate (the first ones); the rest carry no position.
    base: longest wavelength over 2 pi.
    series: 'geometric' = base^(-2 i / width), the usual one; 'end_point' = base^(-(2 / width) linspace(0, width / 2)),
      which perceiver-ar `perceiver_ar/perceiver_ar_model.py` uses and its weights need.
    layout: 'interleaved' pairs channels (0, 1), (2, 3), ...; 'half' pairs channel c with c + width / 2.
    axis: the coordinate of `Tokens.position` that rotates.
  """

  fraction: float = 1.0
  base: float = 10_000.0
  series: Literal['geometric', 'end_point'] = 'geometric'
  layout: Literal['interleaved', 'half'] = 'interleaved'
  axis: int = 0

  def __post_init__(self):
    check_counts(self, 'axis', least=0)
    check_numbers(self, 'fraction')
    check_numbers(self, 'base', least=1)

  def check(self, qk_head_channels: int) -> None:
    if not 0 < self.fraction <= 1 or self.width(qk_head_channels) < 2:
      raise ValueError(
        f'Rotary fraction {self.fraction} of {qk_head_channels} channels a head leaves '
        f'{self.width(qk_head_channels)} channels to rotate; it needs at least 2.'
      )

  def width(self, qk_head_channels: int) -> int:
    return 2 * int(qk_head_channels * self.fraction / 2)

  def __call__(self, heads: Float[Array, 'b h j k'], position: Num[Array, '#b j p']) -> Float[Array, 'b h j k']:
    width = self.width(heads.shape[-1])
    bands = np.arange(width // 2) if self.series == 'geometric' else np.linspace(0, width / 2, width // 2)
    frequencies = (self.base ** (-2 * bands / width)).astype(float_type())
    angles = position[:, None, :, self.axis, None].astype(float_type()) * frequencies[None, None, None]
    sin, cos = jnp.sin(angles).astype(heads.dtype), jnp.cos(angles).astype(heads.dtype)
    rotating, fixed = heads[..., :width], heads[..., width:]
    pairs = 'b h j (c two) -> two b h j c' if self.layout == 'interleaved' else 'b h j (two c) -> two b h j c'
    first, second = rearrange(rotating, pairs, two=2)
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin])
    back = ' -> '.join(reversed(pairs.split(' -> ')))
    return jnp.concatenate([rearrange(rotated, back), fixed], axis=-1)
