"""Video as bytes: each token is a small block of pixels in space and time that knows its place."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Num

from perceiver_lib.positions import grid
from perceiver_lib.tokens import AnyArray, Tokens

Patch = tuple[int, int, int]


def video_patches(frames: Num[AnyArray, 'b t y x c'], patch: Patch) -> Num[AnyArray, 'b m k']:
  """Space to depth: one row a block of (frames, rows, columns), its values in frame, row, column, channel order.

  Blocks are in time, row, column order.

  Raises:
    ValueError: if the blocks do not tile the video.
  """
  t, y, x = _cells(frames.shape, patch)
  return rearrange(
    frames, 'b (t f) (y i) (x j) c -> b (t y x) (f i j c)', t=t, y=y, x=x, f=patch[0], i=patch[1], j=patch[2]
  )


def video_from_patches(
  patches: Num[AnyArray, 'b m k'], shape: tuple[int, int, int, int], patch: Patch
) -> Num[AnyArray, 'b t y x c']:
  """The inverse of `video_patches`, for videos of shape (frames, height, width, channels).

  Raises:
    ValueError: if number or size of the blocks is another.
  """
  t, y, x = _cells((len(patches), *shape), patch)
  expected = (t * y * x, math.prod(patch) * shape[-1])
  if patches.shape[1:] != expected:
    raise ValueError(
      f'A video of shape {shape} has {expected[0]} patches of {expected[1]} values; got {patches.shape}.'
    )
  return rearrange(
    patches, 'b (t y x) (f i j c) -> b (t f) (y i) (x j) c', t=t, y=y, x=x, f=patch[0], i=patch[1], j=patch[2]
  )


def video_positions(shape: tuple[int, int, int], patch: Patch, *, end_points: bool = True) -> Float[np.ndarray, 'm 3']:
  """Coordinates (time, row, column) in [-1, 1] of the blocks of a video of (frames, height, width).

  Args:
    end_points: as `perceiver_lib.positions.grid`: True = the grid of inputs, False = that of sub-sampled queries.
  """
  return grid(_cells((1, *shape, 1), patch), end_points=end_points)


def video_tokens(frames: Num[AnyArray, 'b t y x c'], patch: Patch, *, end_points: bool = True) -> Tokens:
  """Raw tokens, one a block.

  Args:
    frames: bytes 0..255 or floats; the adapter scales them.
    patch: frames, rows and columns of a block.
    end_points: as `video_positions`.

  Raises:
    ValueError: if the blocks do not tile the video.
  """
  values = video_patches(frames, patch)
  position = video_positions(frames.shape[1:4], patch, end_points=end_points)
  return Tokens(values=values, position=jnp.asarray(position)[None])


def _cells(shape: tuple[int, ...], patch: Patch) -> tuple[int, int, int]:
  if len(shape) != 5 or any(size % side or size < side for size, side in zip(shape[1:4], patch, strict=True)):
    raise ValueError(
      f'Videos must be [batch, frames, height, width, channels] tiled by blocks of {patch}; got shape {tuple(shape)}.'
    )
  t, y, x = (size // side for size, side in zip(shape[1:4], patch, strict=True))
  return t, y, x
