"""Optical flow for Perceiver IO (2107.14795, section 4.2 and App. H): pixels in, flow out, any image size by tiles.

Flow is (right, down) in pixels from the first frame to the second: `frame1(x) = frame2(x + flow(x))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from perceiver_lib.positions import grid
from perceiver_lib.tokens import AnyArray, Tokens, float_type

PAPER_TILE = (368, 496)
"""Height and width of the images that the published model was trained on."""
RESCALE_FACTOR = 100.0
"""The decoder's output is divided by it (`rescale_factor`, DeepMind's flow colab) ..."""
FLOW_SCALE_FACTOR = 20.0
"""... and a unit of the result is this many pixels (`FLOW_SCALE_FACTOR`, same place)."""
OUTPUT_GAIN = 20.0
"""`ReadFlow` takes an output for this many published ones: a head that starts at zero reaches 8 pixels in few steps."""
_SIDE = 3


def normalise(frames: Num[AnyArray, '*shape']) -> Float[Array, '*shape']:
  """0..255 (bytes or floats) to [-1, 1], as published."""
  return jnp.asarray(frames).astype(float_type()) / 255 * 2 - 1


def neighbourhoods(frames: Float[AnyArray, 'b t h w c']) -> Float[Array, 'b t h w e']:
  """The 3 x 3 pixels around every pixel, in the order (row, column, channel); zeros (mid-grey) beyond the border.

  Raises:
    ValueError: if the frames are smaller than a neighbourhood.
  """
  _, _, h, w, _ = frames.shape
  if min(h, w) < _SIDE:
    raise ValueError(
      f'Flow reads neighbourhoods of {_SIDE} x {_SIDE} pixels; got frames of {h} x {w}. Use larger frames.'
    )
  padded = jnp.pad(frames, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
  shifted = [padded[:, :, row : row + h, column : column + w] for row in range(_SIDE) for column in range(_SIDE)]
  return rearrange(shifted, 'patch b t h w c -> b t h w (patch c)')


def flow_inputs(frames: Num[AnyArray, 'b 2 h w c']) -> Float[AnyArray, 'b m e']:
  """Two RGB frames in 0..255 (bytes or floats) to one token a pixel: the neighbourhoods of both, `[b, h * w, 54]`."""
  return rearrange(neighbourhoods(normalise(frames)), 'b t h w e -> b (h w) (t e)')


def flow_from_outputs(outputs: Float[AnyArray, 'b o 2'], height: int, width: int) -> Float[AnyArray, 'b h w 2']:
  """Decoder outputs, one a pixel of the first frame, to pixels of motion: divided by 100, times 20."""
  if outputs.shape[1:] != (height * width, 2):
    raise ValueError(
      f'Expected outputs [batch, {height * width}, 2] for {height} x {width} pixels; got {outputs.shape}.'
    )
  return rearrange(outputs, 'b (h w) e -> b h w e', h=height) * (FLOW_SCALE_FACTOR / RESCALE_FACTOR)


@dataclasses.dataclass(frozen=True)
class ReadFlow:
  """Runs a Perceiver IO on pairs of small frames, with the published inputs and queries.

  It departs from the published model where training takes minutes: pairs are `standardised`, latents read every second
  row and column, and an output is `OUTPUT_GAIN` times as many pixels.

  Attributes:
    stride: latents read every `stride`-th row and column. At 2 the 3 x 3 neighbourhoods still hold every pixel, for a
      quarter of the read; any pixel can be asked for.
  """

  stride: int = 2

  def inputs(self, frames: Num[AnyArray, 'b 2 h w 3']) -> Tokens:
    """Neighbourhoods with their place in [-1, 1]."""
    return Tokens(values=flow_inputs(standardised(frames)), position=jnp.asarray(grid(frames.shape[2:4]))[None])

  def seen(self, inputs: Tokens, height: int, width: int) -> Tokens:
    """The tokens that the latents read."""
    rows = np.arange(inputs.num_tokens).reshape(height, width)
    rows = rows[self.stride - 1 :: self.stride, self.stride - 1 :: self.stride].reshape(-1)
    return Tokens(values=inputs.values[:, rows], position=inputs.position[:, rows])

  def outputs(
    self, model: nnx.Module, frames: Num[AnyArray, 'b 2 h w 3'], rows: Int[AnyArray, 'o'] | None = None, shift: int = 0
  ) -> Float[Array, 'b o 2']:
    """Raw outputs for all pixels of frame 1 or for some `rows` of them, in units of `OUTPUT_GAIN` published ones.

    Args:
      shift: 0 = a pair's queries read its own latents; n = those of the pair n places before it in the batch.
    """
    inputs = self.inputs(frames)
    latents = model.encode(self.seen(inputs, *frames.shape[2:4]))
    latents = dataclasses.replace(latents, values=jnp.roll(latents.values, shift, axis=0))
    rows = slice(None) if rows is None else rows
    return model.decode(latents, Tokens(values=inputs.values[:, rows], position=inputs.position[:, rows]))

  def at(
    self, model: nnx.Module, frames: Num[AnyArray, 'b 2 h w 3'], rows: Int[AnyArray, 'o']
  ) -> Float[Array, 'b o 2']:
    """Flow in pixels of some pixels of frame 1, counted row by row."""
    return flow_from_outputs(OUTPUT_GAIN * self.outputs(model, frames, rows), 1, len(rows))[:, 0]

  def __call__(self, model: nnx.Module, batch: Mapping[str, AnyArray]) -> Float[Array, 'b h w 2']:
    """Flow in pixels of every pixel of frame 1, for `batch['frames']`: what `training.metrics.predict` calls."""
    frames = batch['frames']
    return flow_from_outputs(OUTPUT_GAIN * self.outputs(model, frames), *frames.shape[2:4])

  def with_foreign_latents(self, model: nnx.Module, batch: Mapping[str, AnyArray]) -> Float[Array, 'b h w 2']:
    """The same queries read the latents of the pair two places before: what is left, they carry along themselves.

    Two, because pairs come forward and reversed: the pair beside it may be the same scene.
    """
    frames = batch['frames']
    return flow_from_outputs(OUTPUT_GAIN * self.outputs(model, frames, shift=2), *frames.shape[2:4])


def standardised(frames: Num[AnyArray, 'b 2 h w 3']) -> Float[Array, 'b 2 h w 3']:
  """Frames in 0..255 without the mean and contrast of their pair: grey 127.5, and as much for a standard deviation."""
  frames = jnp.asarray(frames).astype(float_type())
  mean, spread = (statistic(frames, axis=(1, 2, 3, 4), keepdims=True) for statistic in (jnp.mean, jnp.std))
  return (frames - mean) / (spread + 4) * 127.5 + 127.5


def warp(image: Float[AnyArray, 'h w c'], flow: Float[AnyArray, 'h w 2']) -> Float[AnyArray, 'h w c']:
  """`image(x + flow(x))`, bilinear, border pixels beyond the border: brings the second frame onto the first."""
  image, flow = jnp.asarray(image), jnp.asarray(flow)
  rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=flow.dtype) for n in image.shape[:2]), indexing='ij')
  points = [rows + flow[..., 1], columns + flow[..., 0]]

  def sample(channel: Array) -> Array:
    return jax.scipy.ndimage.map_coordinates(channel, points, order=1, mode='nearest')

  return jax.vmap(sample, -1, -1)(image)


def tile_starts(length: int, tile: int, overlap: int) -> Int[np.ndarray, 'tiles']:
  """First pixels of the fewest tiles that cover `length` with at least `overlap`: evenly spaced, the last one flush.

  A Sintel frame of 436 x 1024 has 2 x 3 tiles of 368 x 496, the paper's six.

      >>> tile_starts(1024, 496, 20)
      array([  0, 264, 528])
  """
  count = max(1, -(-(length - overlap) // (tile - overlap)))
  return np.linspace(0, max(length - tile, 0), count).astype(np.int64)


def border_distance(height: int, width: int) -> Float[np.ndarray, 'h w']:
  """Weight of each pixel of a tile: its distance to the nearest border, 1 on the border itself."""
  rows, columns = (np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in (height, width))
  return np.minimum(rows[:, None], columns).astype(np.float32)


def tiled_flow(
  predict: Callable[[np.ndarray], AnyArray],
  frames: Num[np.ndarray, 't h w c'],
  *,
  tile: tuple[int, int] = PAPER_TILE,
  overlap: int = 20,
  batch_size: int = 1,
) -> Float[np.ndarray, 'h w 2']:
  """Flow of a pair of any size, from a model of one size: overlapping tiles, averaged by distance to the tile's border.

  A frame smaller than the tile is continued by its border pixels; that part of the answer is cut off again.

  Args:
    predict: frames `[batch_size, 2, tile height, tile width, c]` in 0..255 to flow `[batch_size, ..., 2]` in pixels.
      It always gets full batches, so it compiles once.
    frames: in 0..255.
    tile: height and width.
    overlap: least number of pixels that neighbouring tiles share.
    batch_size: tiles a call.

  Raises:
    ValueError: for frames of the wrong shape or below 3 x 3 pixels, an overlap as large as a tile, or a prediction of
      the wrong shape.
  """
  frames = np.asarray(frames)
  if frames.ndim != 4 or frames.shape[0] != 2 or min(frames.shape[1:3]) < _SIDE:
    raise ValueError(f'Expected two frames [2, height, width, channels] of at least 3 x 3 pixels; got {frames.shape}.')
  if not 0 <= overlap < min(tile):
    raise ValueError(f'The overlap must be at least 0 and smaller than the tile {tile}; got {overlap}.')
  if batch_size < 1:
    raise ValueError(f'Expected a batch of at least 1 tile; got {batch_size}.')
  height, width = frames.shape[1:3]
  short = [max(0, side - size) for side, size in zip(tile, (height, width), strict=True)]
  frames = np.pad(frames, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)), mode='edge')
  corners = [
    (y, x)
    for y in tile_starts(frames.shape[1], tile[0], overlap)
    for x in tile_starts(frames.shape[2], tile[1], overlap)
  ]
  weight = border_distance(*tile)[..., None]
  total = np.zeros((*frames.shape[1:3], 2), np.float32)
  weights = np.zeros((*frames.shape[1:3], 1), np.float32)
  for start in range(0, len(corners), batch_size):
    batch = corners[start : start + batch_size]
    tiles = np.stack([frames[:, y : y + tile[0], x : x + tile[1]] for y, x in batch])
    missing = batch_size - len(batch)
    tiles = np.concatenate([tiles, repeat(tiles[-1], '... -> n ...', n=missing)]) if missing else tiles
    flows = np.asarray(predict(tiles))
    if flows.shape != (batch_size, *tile, 2):
      raise ValueError(f'Expected a prediction {(batch_size, *tile, 2)} for tiles {tiles.shape}; got {flows.shape}.')
    for (y, x), flow in zip(batch, flows[: len(batch)], strict=True):
      total[y : y + tile[0], x : x + tile[1]] += weight * flow
      weights[y : y + tile[0], x : x + tile[1]] += weight
  return (total / weights)[:height, :width]
