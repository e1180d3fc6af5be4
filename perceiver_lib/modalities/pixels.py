"""Images as bytes: every pixel, or every small patch, is a token that knows nothing but its values and its place."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Num

from perceiver_lib.adapters import FeatureAdapterConfig, LearnedPositions
from perceiver_lib.positions import FourierFeatures, grid, indices
from perceiver_lib.tokens import Tokens


def pixel_tokens(images: Num[Array, 'b y x c'], *, patch_size: int = 1, integer_positions: bool = False) -> Tokens:
  """Raw tokens, one a patch, in row-major order.

  Args:
    images: bytes 0..255 or floats; the adapter scales them.
    patch_size: 1 = one token a pixel; otherwise the values of a token are its patch in row, column, channel order.
    integer_positions: row and column numbers, for learned tables, in place of coordinates in [-1, 1].

  Raises:
    ValueError: if the patches do not tile the image.
  """
  if images.ndim != 4 or images.shape[1] % patch_size or images.shape[2] % patch_size:
    raise ValueError(
      f'Images must be [batch, height, width, channels] with sides that {patch_size} divides; got {images.shape}.'
    )
  values = rearrange(images, 'b (y i) (x j) c -> b (y x) (i j c)', i=patch_size, j=patch_size)
  cells = (images.shape[1] // patch_size, images.shape[2] // patch_size)
  position = indices(cells) if integer_positions else grid(cells)
  return Tokens(values=values, position=jnp.asarray(position)[None])


def pixel_adapter(
  image_shape: tuple[int, int, int],
  *,
  patch_size: int = 1,
  num_bands: int | None = None,
  num_position_channels: int | None = None,
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
  cells = (image_shape[0] // patch_size, image_shape[1] // patch_size)
  position = (
    LearnedPositions(shape=cells, num_channels=num_position_channels)
    if num_bands is None
    else FourierFeatures(num_bands=num_bands, max_resolution=cells)
  )
  return FeatureAdapterConfig(num_values=patch_size**2 * image_shape[2], scale=2 / 255, shift=-1.0, position=position)
