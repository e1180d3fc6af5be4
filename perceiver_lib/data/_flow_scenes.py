"""Pairs of frames with exact optical flow: layers of real photographs under random motion, in one compiled function.

Flow points from the first frame to the second, `frame1(x) = frame2(x + flow(x))`, as (right, down) in pixels.

A scene is a stack of layers: a background and up to two patches in front of it. Layer l has a texture T_l and, but for
the background, a shape s_l, negative inside; both live in the coordinates of frame 2. In frame 1 the point x of layer l
shows what frame 2 has at p_l(x) = x + u_l(x), so

  frame 2 at y:  layers T_l(y),      the uppermost with s_l(y) < 0 in front
  frame 1 at x:  layers T_l(p_l(x)), the uppermost with s_l(p_l(x)) < 0 in front

and, for the layer l in front at x (or y), the truth is a formula, not an estimate:

  flow 1 -> 2 at x:  u_l(x);              occluded if a higher layer covers p_l(x) in frame 2
  flow 2 -> 1 at y:  p_l^-1(y) - y;       occluded if a higher layer covers p_l^-1(y) in frame 1

A point that leaves the frame counts as occluded too; its flow is as exact as any. T_l is a photograph at whole pixels
and bilinear between them: frame 2 is made of original pixels, and frame 1 is the bilinear warp of frame 2 wherever all
four neighbours of p_l(x) show layer l. Patches move affinely, so p_l^-1 is closed; the background moves affinely plus
two waves that together change by at most 0.3 pixel a pixel, so a fixed-point iteration inverts it to 0.01 pixel.
Soft edges blend two layers; there the truth is the motion of the layer with the larger share.

After the training data of Perceiver IO (2107.14795, App. H): motions grow, photometric augmentation comes late, and
each pair is shown forward and reversed. There the reversed flow is an approximation, here it is exact.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.data._photos import PhotoAtlas
from perceiver_lib.tokens import AnyArray

MAX_SHIFT = 8.0
"""Pixels. The real pair at 1/8 scale moves by 0.9 to 7.5 pixels; at full severity training covers that."""
NUM_PATCHES = 2
MARGIN = 12
"""Pixels around a crop: MAX_SHIFT and some affine and wavy motion, so that textures seldom run off their photograph."""
_WAVE_SLOPE = 0.15  # Pixels of motion a pixel, for each of two waves; their sum below 1 keeps the motion invertible.
_INVERSE_STEPS = 8


class _Layer(NamedTuple):
  """Random numbers of one layer, uniform in [0, 1)."""

  photo: Array
  origin: Array  # [2]
  orientation: Array
  shift: Array  # [2]: magnitude, direction
  affine: Array  # [2, 2]
  waves: Array  # [2, 5]: amplitude, its direction, wavelength, its direction, phase
  centre: Array  # [2]
  radius: Array  # [2]
  present: Array
  is_polygon: Array
  softness: Array
  corners: Array  # [5]


_LAYER_SIZES = [1, 2, 1, 2, 4, 10, 2, 2, 1, 1, 1, 5]
_NUM_COLOUR = 11


def _layer(uniform: Float[AnyArray, 'draws']) -> _Layer:
  pieces = _Layer(*jnp.split(uniform, np.cumsum(_LAYER_SIZES)[:-1]))
  scalars = {name: getattr(pieces, name)[0] for name in ('photo', 'orientation', 'present', 'is_polygon', 'softness')}
  return pieces._replace(affine=pieces.affine.reshape(2, 2), waves=pieces.waves.reshape(2, 5), **scalars)


def direction(turn: Array) -> Array:
  """Unit vectors (x, y) on the last axis; `turn` in whole turns."""
  return jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)], -1)


class _Motion:
  """x -> p(x), from frame 1 to frame 2, and back."""

  def __init__(self, layer: _Layer, *, size: int, severity: Array, wavy: bool):
    self.centre = (size - 1) / 2
    self.matrix = jnp.eye(2) + severity * 0.12 * (layer.affine - 0.5)
    self.shift = ((0.5 + 0.5 * severity) * MAX_SHIFT * layer.shift[0] * direction(layer.shift[1]))[None, None]
    self.wavy = wavy
    amplitude, amplitude_turn, wavelength, wave_turn, self.phase = layer.waves.T
    wavenumber = 2 * jnp.pi / (size * (0.5 + 1.5 * wavelength))
    self.wave = wavenumber[:, None] * direction(wave_turn)
    self.amplitude = (severity * _WAVE_SLOPE * amplitude / wavenumber)[:, None] * direction(amplitude_turn)

  def _waves(self, x: Float[AnyArray, 'h w 2']) -> Float[AnyArray, 'h w 2']:
    return jnp.sin(x @ self.wave.T + 2 * jnp.pi * self.phase[None, None]) @ self.amplitude

  def __call__(self, x: Float[AnyArray, 'h w 2']) -> Float[AnyArray, 'h w 2']:
    moved = (x - self.centre) @ self.matrix.T + self.centre + self.shift
    return moved + self._waves(x) if self.wavy else moved

  def inverse(self, y: Float[AnyArray, 'h w 2']) -> Float[AnyArray, 'h w 2']:
    (a, b), (c, d) = self.matrix
    inverse_matrix = jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) / (a * d - b * c)

    def unmoved(point: Array) -> Array:
      return (point - self.centre - self.shift) @ inverse_matrix.T + self.centre

    x = unmoved(y)
    if self.wavy:
      for _ in range(_INVERSE_STEPS):
        x = unmoved(y - self._waves(x))
    return x


class _Shape:
  """An ellipse or a convex polygon in frame 2."""

  def __init__(self, layer: _Layer, *, size: int, severity: Array):
    self.centre = layer.centre[None, None] * (size - 1)
    self.radius = size * (0.12 + 0.18 * layer.radius[None, None])
    self.normals = direction((jnp.arange(5.0) + 0.6 * layer.corners) / 5)
    self.is_polygon = layer.is_polygon < 0.5
    self.present = layer.present < severity * 2 / 3
    # Half of the edges are hard; the others blend over 1 to 3 pixels.
    self.softness = jnp.where(layer.softness < 0.5, 1e-3, 4 * layer.softness - 1)

  def distance(self, y: Float[AnyArray, 'h w 2']) -> Float[AnyArray, 'h w']:
    """About the distance to the edge in pixels, negative inside."""
    scaled = (y - self.centre) / self.radius
    reach = jnp.where(self.is_polygon, jnp.max(scaled @ self.normals.T, -1), jnp.linalg.norm(scaled, axis=-1))
    return jnp.where(self.present, (reach - 1) * jnp.min(self.radius), jnp.inf)

  def covers(self, y: Float[AnyArray, 'h w 2']) -> Bool[AnyArray, 'h w']:
    return self.distance(y) < 0

  def opacity(self, y: Float[AnyArray, 'h w 2']) -> Float[AnyArray, 'h w 1']:
    return jnp.clip(0.5 - self.distance(y) / self.softness, 0, 1)[..., None]


class _Texture:
  """A photograph laid under frame 2, turned or mirrored when augmenting, at whole pixels."""

  def __init__(self, layer: _Layer, atlas: PhotoAtlas, *, size: int, augment: bool):
    last = len(atlas.height) - 1
    entry = jnp.minimum(jnp.searchsorted(atlas.cumulative, layer.photo, side='right'), last)
    self.pixels, self.start = atlas.pixels, atlas.start[entry]
    self.shape = jnp.stack([atlas.width[entry], atlas.height[entry]])
    room = jnp.maximum(self.shape - size - 2 * MARGIN, 0).astype(jnp.float32)
    self.middle = size // 2
    self.origin = (jnp.floor(layer.origin * (room + 1)) + MARGIN + self.middle)[None, None]
    choice = jnp.floor(8 * layer.orientation).astype(jnp.int32) if augment else jnp.int32(0)
    identity = jnp.eye(2)
    turned = jnp.where(choice % 2 == 1, identity[::-1], identity)
    signs = jnp.stack([1 - choice // 2 % 2 * 2, 1 - choice // 4 * 2]).astype(jnp.float32)
    self.orientation = signs[:, None] * turned

  def _fetch(self, x: Int[AnyArray, 'h w'], y: Int[AnyArray, 'h w']) -> Float[AnyArray, 'h w 3']:
    width, height = self.shape
    column, row = jnp.clip(x, 0, width - 1), jnp.clip(y, 0, height - 1)
    packed = self.pixels[self.start + row * width + column]
    return jnp.stack([packed & 255, (packed >> 8) & 255, packed >> 16], -1).astype(jnp.float32)

  def __call__(self, point: Float[AnyArray, 'h w 2'], *, at_pixels: bool) -> Float[AnyArray, 'h w 3']:
    place = (point - self.middle) @ self.orientation.T + self.origin
    corner = jnp.floor(place + (0.5 if at_pixels else 0.0))
    x, y = corner.astype(jnp.int32)[..., 0], corner.astype(jnp.int32)[..., 1]
    if at_pixels:
      return self._fetch(x, y)
    right, down = (place - corner)[..., :1], (place - corner)[..., 1:]
    above = self._fetch(x, y) * (1 - right) + self._fetch(x + 1, y) * right
    below = self._fetch(x, y + 1) * (1 - right) + self._fetch(x + 1, y + 1) * right
    return above * (1 - down) + below * down


def pixel_grid(size: int) -> Float[AnyArray, 'h w 2']:
  x, y = jnp.meshgrid(jnp.arange(size, dtype=jnp.float32), jnp.arange(size, dtype=jnp.float32))
  return jnp.stack([x, y], -1)


def _recolour(
  frames: Float[AnyArray, '2 h w 3'], draws: Float[AnyArray, 'draws'], strength: Array
) -> Float[AnyArray, '2 h w 3']:
  """Brightness of each channel, contrast and saturation; in one pair of five they differ between the frames."""
  differ = jnp.where(draws[0] < 0.2, jnp.array([[-0.5], [0.5]]), 0.0)
  exponents = (2 * draws[None, 1:6] - 1) + differ * (2 * draws[None, 6:11] - 1)
  factors = jnp.exp(0.35 * strength * exponents)[:, None, None, :]
  brightness, contrast, saturation = factors[..., :3], factors[..., 3:4], factors[..., 4:]
  grey = frames.mean(-1, keepdims=True)
  frames = grey + saturation * (frames - grey)
  middle = frames.mean((1, 2, 3), keepdims=True)
  return jnp.clip((middle + contrast * (frames - middle)) * brightness, 0, 255)


def _scene(key: Array, severity: Array, atlas: PhotoAtlas, *, size: int, augment: bool) -> dict[str, Array]:
  draws = jax.random.uniform(key, ((1 + NUM_PATCHES) * sum(_LAYER_SIZES) + _NUM_COLOUR,))
  rows = draws[:-_NUM_COLOUR].reshape(1 + NUM_PATCHES, -1)
  layers = [_layer(row) for row in rows]
  motions = [_Motion(layer, size=size, severity=severity, wavy=i == 0) for i, layer in enumerate(layers)]
  textures = [_Texture(layer, atlas, size=size, augment=augment) for layer in layers]
  shapes = [_Shape(layer, size=size, severity=severity) for layer in layers[1:]]
  grid = pixel_grid(size)

  # places[frame][layer]: where the pixel grid of that frame lies in frame 2's coordinates, if it shows that layer.
  places = [[motion(grid) for motion in motions], [grid] * len(motions)]
  ends = [places[0], [motion.inverse(grid) for motion in motions]]
  frames, flows, occlusions = [], [], []
  for own, end, at_pixels in zip(places, ends, (False, True), strict=True):
    frame, target, front = textures[0](own[0], at_pixels=at_pixels), end[0], jnp.zeros((size, size), jnp.int32)
    for index, shape in enumerate(shapes, start=1):
      texture = textures[index](own[index], at_pixels=at_pixels)
      frame = frame + shape.opacity(own[index]) * (texture - frame)
      inside = shape.covers(own[index])
      target = jnp.where(inside[..., None], end[index], target)
      front = jnp.where(inside, index, front)
    occluded = ((target < 0) | (target > size - 1)).any(-1)
    for index, shape in enumerate(shapes, start=1):
      # The first frame's targets are points of frame 2 already; the second frame's are points of frame 1.
      covered = shape.covers(motions[index](target) if at_pixels else target)
      occluded |= covered & (front < index)
    frames.append(frame)
    flows.append(target - grid)
    occlusions.append(occluded)
  pair = jnp.stack(frames)
  if augment:
    pair = _recolour(pair, draws[-_NUM_COLOUR:], jnp.clip(2 * severity - 1, 0, 1))
  return {
    'frames': jnp.stack([pair, pair[::-1]]),
    'flow': jnp.stack(flows),
    'occluded': jnp.stack(occlusions),
  }


@functools.partial(jax.jit, static_argnames=('size', 'augment'))
def render_scenes(
  atlas: PhotoAtlas,
  key: Array,
  scenes: Int[AnyArray, 's'],
  severity: Float[AnyArray, 's'],
  *,
  size: int,
  augment: bool,
) -> dict[str, Array]:
  """Scenes by number, each forward and reversed. Content depends on the arguments alone.

  Args:
    atlas: the photographs; a NumPy or JAX pytree, so it travels to any device.
    key: of the data set; scene n draws from `fold_in(key, n)`.
    scenes: numbers of the scenes.
    severity: of each scene, 0 to 1. At 0 the background shifts by up to half of the range and nothing
      is in front; affine motion, waves and patches grow in. Above one half, colours vary.
    size: side of the frames in pixels.
    augment: turn and mirror textures, vary colours.

  Returns:
    'frames' float32 `[s, 2, 2, size, size, 3]` in 0..255 (scene, direction, time), 'flow' `[s, 2, size, size, 2]` in
    pixels (right, down), 'occluded' bool `[s, 2, size, size]`.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, scenes)
  return jax.vmap(functools.partial(_scene, size=size, augment=augment), (0, 0, None))(keys, severity, atlas)
