"""Images as bytes: every pixel is a token that knows nothing but its values and its place."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float32, Num, UInt8

from perceiver_lib.adapters import FeatureAdapterConfig, LearnedPositions
from perceiver_lib.positions import FourierFeatures, grid, indices, resampled
from perceiver_lib.tokens import Tokens

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]."""


def imagenet_image(photograph: UInt8[np.ndarray, 'y x 3'], size: int = 224) -> Float32[np.ndarray, 'size size 3']:
  """A photograph as the released ImageNet models take it: its middle, 7/8 of the shorter side, resized, normalised.

  As in the colab of deepmind-research's `perceiver`; transformers smooths before it makes an image smaller.
  """
  height, width = photograph.shape[:2]
  side = max(int(0.875 * min(height, width)), 1)
  top, left = (height - side + 1) // 2, (width - side + 1) // 2
  square = resampled(photograph[top : top + side, left : left + side], (size, size)).round().clip(0, 255) / 255
  return ((square - IMAGENET_MEAN) / IMAGENET_DEVIATION).astype(np.float32)


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
