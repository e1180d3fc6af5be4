"""Images as bytes: every pixel is a token that knows nothing but its values and its place."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Num

from perceiver_lib.adapters import FeatureAdapterConfig, LearnedPositions
from perceiver_lib.positions import FourierFeatures, grid, indices
from perceiver_lib.tokens import Tokens


def pixel_tokens(images: Num[Array, 'b y x c'], *, integer_positions: bool = False) -> Tokens:
  """Raw tokens, one a pixel, in row-major order.

  Args:
    images: bytes 0..255 or floats; the adapter scales them.
    integer_positions: row and column numbers, for learned tables, in place of coordinates in [-1, 1].

  Raises:
    ValueError: for anything but a batch of images.
  """
  if images.ndim != 4:
    raise ValueError(f'Images must be [batch, height, width, channels]; got {images.shape}.')
  position = (indices if integer_positions else grid)(images.shape[1:3])
  return Tokens(values=rearrange(images, 'b y x c -> b (y x) c'), position=jnp.asarray(position)[None])


def pixel_adapter(
  image_shape: tuple[int, int, int], *, num_bands: int | None = None, num_position_channels: int | None = None
) -> FeatureAdapterConfig:
  """The adapter for `pixel_tokens` of byte images: values in [-1, 1] beside Fourier features or a learned table.

  Args:
    image_shape: height, width, channels of the image.
    num_bands: frequencies an axis, up to the grid's Nyquist frequency.
    num_position_channels: width of a learned table, which then takes the place of Fourier features.

  Raises:
    ValueError: if not exactly one of the two kinds of positions is asked for.
  """
  if (num_bands is None) == (num_position_channels is None):
    raise ValueError('Give either num_bands (Fourier features) or num_position_channels (a learned table).')
  *cells, channels = image_shape
  position = (
    LearnedPositions(shape=tuple(cells), num_channels=num_position_channels)
    if num_bands is None
    else FourierFeatures(num_bands=num_bands, max_resolution=tuple(cells))
  )
  return FeatureAdapterConfig(num_values=channels, scale=2 / 255, shift=-1.0, position=position)
