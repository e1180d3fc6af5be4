"""Optical flow: photographs in random motion with exact truth, to train and choose on, and a real stereo pair.

Flow points from the first frame to the second, `frame1(x) = frame2(x + flow(x))`, as (right, down) in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float

from perceiver_lib.data import _photos
from perceiver_lib.data._flow_scenes import MARGIN, direction, pixel_grid, render_scenes
from perceiver_lib.data._photos import PhotoAtlas
from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version, sha256
from perceiver_lib.data.user_files import read_image

__all__ = [
  'FlowPairs',
  'barber_poles',
  'load_optical_flow',
  'load_stereo_pair',
  'render_scenes',
  'side_by_side',
  'two_motions',
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowPairs:
  """Frame pairs with exact flow; pair 2n is scene n forward, pair 2n + 1 the same scene reversed.

  Pair i is a function of (seed, i), so a stopped run continues with the very pairs it would have seen.

  Attributes:
    atlas: photographs of one split only.
    seed: of the scenes.
    length: number of pairs.
    size: side of the frames in pixels.
    max_severity: how hard pairs get, up to 1. At 0.5 layers shift by up to 6 pixels and a pair shows 0.7 patches, at 1
      by up to 8 pixels and 1.3 patches.
    ramp: number of pairs over which severity rises from 0 to its maximum; 0 = it is there from the start.
    augment: turn and mirror textures, and vary colours once severity passes one half.
  """

  atlas: PhotoAtlas
  seed: int
  length: int
  size: int
  max_severity: float = 1.0
  ramp: int = 0
  augment: bool = False

  def __len__(self) -> int:
    return self.length

  def severity(self, index: int | np.ndarray) -> np.float32 | np.ndarray:
    """How hard pair `index` is, 0 to `max_severity`."""
    share = np.minimum(np.float32(1), np.asarray(index, np.float32) / max(self.ramp, 1) + float(self.ramp == 0))
    return np.float32(self.max_severity) * share

  def batches(self, batch_size: int, *, start_step: int = 0) -> Iterator[dict[str, Array]]:
    """Endless batches in order, easy pairs first, from the batch of `start_step` on; past the end pairs begin again."""
    for step in itertools.count(start_step):
      yield self.batch(step * batch_size, batch_size)

  def batch(self, start: int, count: int) -> dict[str, Array]:
    """Pairs `start` to `start + count` as JAX arrays, in one compiled call; past the end they begin again.

    Raises:
      ValueError: if `start` or `count` is odd, which would split a scene.
    """
    if start % 2 or count % 2 or count < 2:
      raise ValueError(f'Pairs come forward and reversed, so start and count must be even; got {start} and {count}.')
    scenes = (start // 2 + np.arange(count // 2)) % (self.length // 2)
    return {name: value.reshape(count, *value.shape[2:]) for name, value in self._render(scenes).items()}

  def _render(self, scenes: np.ndarray) -> dict[str, Array]:
    scenes, severity = scenes.astype(np.int32), self.severity(2 * scenes)
    key = jax.random.key(self.seed)
    return render_scenes(self.atlas, key, scenes, severity, size=self.size, augment=self.augment)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < self.length:
      raise IndexError(f'This set has pairs 0 to {self.length - 1}; got {index}.')
    return {name: np.asarray(value[index % 2]) for name, value in self.batch(index - index % 2, 2).items()}


def load_optical_flow(
  *,
  size: int = 32,
  max_severity: float = 1.0,
  seed: int = 0,
  train_pairs: int = 1_000_000,
  held_out_pairs: int = 512,
  ramp: int = 0,
) -> DataSet:
  """Photographs in random motion; validation and test pairs come from photographs that training never sees.

  Each example: 'frames' float32 `[2, size, size, 3]` in 0..255, 'flow' `[size, size, 2]` in pixels (right, down),
  'occluded' bool `[size, size]`.

  Args:
    size: side of the frames in pixels, at least 8.
    max_severity: how hard all three splits are, above 0 and up to 1: see `FlowPairs`.
    seed: of training scenes; the held-out scenes are the same for every seed, so results compare.
    train_pairs, held_out_pairs: even numbers of pairs; training pairs are made when asked for and cost nothing to have.
    ramp: pairs over which training grows from easy to hard, as `FlowPairs.severity`.

  Raises:
    ValueError: for a size below 8, a severity out of range, an odd number of pairs, or frames too large for the
      photographs.
  """
  if size < 8 or train_pairs % 2 or held_out_pairs % 2:
    raise ValueError(
      f'Expected frames of at least 8 pixels and even numbers of pairs; got size {size}, {train_pairs} training '
      f'and {held_out_pairs} held-out pairs.'
    )
  if not 0 < max_severity <= 1:
    raise ValueError(f'Expected a max_severity above 0 and up to 1; got {max_severity}.')
  atlases = {split: _photos.shipped_atlas(split, size + 2 * MARGIN) for split in _photos.SPLITS}
  held_out = {
    split: FlowPairs(
      atlas=atlases[split], seed=seed_of_split, length=held_out_pairs, size=size, max_severity=max_severity
    )
    for split, seed_of_split in (('validation', 2**31 - 2), ('test', 2**31 - 1))
  }
  names = [name for split in _photos.SPLITS.values() for name in split]
  provenance = Provenance(
    name='photographs in motion',
    kind='synthetic',
    source=f'photographs of {package_version("scikit-image")} and {package_version("scikit-learn")}, moved here',
    licence=_photos.LICENCE,
    counts={'train': train_pairs, 'validation': held_out_pairs, 'test': held_out_pairs},
    checksum=sha256(_photos.photo_path(name).read_bytes() for name in names),
    note=f'real photographs, random motion of severity {max_severity:g} with exact truth; whole photographs held out: '
    + '; '.join(f'{split}: {", ".join(_photos.SPLITS[split])}' for split in ('validation', 'test')),
  )
  train = FlowPairs(
    atlas=atlases['train'], seed=seed, length=train_pairs, size=size, max_severity=max_severity, ramp=ramp, augment=True
  )
  return DataSet(train=train, provenance=provenance, **held_out)


def load_stereo_pair(*, scale: int = 8) -> tuple[dict[str, np.ndarray], Provenance]:
  """The Motorcycle pair of Middlebury Stereo 2014 as optical flow: a zero-shot test on real images.

  A rectified camera moves to the right, so flow left -> right is (-disparity, 0). Images are averaged over blocks of
  `scale` pixels; the truth is sampled at the blocks' centres, because an average would mix surfaces and its unknown
  pixels are +inf, and divided by the scale.

  Returns:
    'frames' float32 `[2, h, w, 3]` in 0..255, 'flow' `[h, w, 2]` in pixels (0 where unknown), 'valid' bool `[h, w]`;
    and where they come from. Full size is 500 x 741.

  Raises:
    ValueError: if the scale is not 1 to 16.
  """
  if not 1 <= scale <= 16:
    raise ValueError(f'The stereo pair is 500 x 741 pixels; expected a scale of 1 to 16, got {scale}.')
  paths = [
    package_files('scikit-image', f'data/motorcycle_{name}')[0] for name in ('left.png', 'right.png', 'disp.npz')
  ]
  frames = np.stack([_photos.halve(read_image(path), scale) for path in paths[:2]])
  with np.load(paths[2]) as archive:
    disparity = archive['arr_0']
  height, width = frames.shape[1:3]
  disparity = disparity[scale // 2 :: scale, scale // 2 :: scale][:height, :width]
  valid = np.isfinite(disparity)
  right = np.where(valid, -disparity / scale, 0).astype(np.float32)
  provenance = Provenance(
    name=f'Motorcycle stereo pair at 1/{scale} scale' if scale > 1 else 'Motorcycle stereo pair',
    kind='real',
    source=f'{package_version("scikit-image")}, from Middlebury Stereo 2014 (Scharstein et al., GCPR 2014)',
    licence='Middlebury: free for research, cite the source',
    counts={'test': 1},
    checksum=sha256(path.read_bytes() for path in paths),
    note=f'{valid.mean():.1%} of {height} x {width} pixels have truth; never used for training or any choice',
  )
  return {'frames': frames, 'flow': np.stack([right, np.zeros_like(right)], -1), 'valid': valid}, provenance


@functools.partial(jax.jit, static_argnames='size')
def side_by_side(frames: Array, flow: Array, *, size: int) -> dict[str, Array]:
  """The left half of every pair of the first half of a batch beside the right half of one of the second."""
  half, middle = len(frames) // 2, size // 2
  return {
    name: jnp.concatenate([array[:half, ..., :middle, :], array[half:, ..., middle:, :]], axis=-2)
    for name, array in (('frames', frames), ('flow', flow))
  }


def two_motions(pairs: FlowPairs, batch_size: int, start_step: int = 0) -> Iterator[dict[str, Array]]:
  """Frames whose left and right half come from two photographs, each shifted by up to 4 pixels in its own direction."""
  shifts = dataclasses.replace(pairs, max_severity=0.0)  # shifts and nothing else
  for step in itertools.count(start_step):
    batch = shifts.batch(2 * step * batch_size, 2 * batch_size)
    yield side_by_side(batch['frames'], batch['flow'], size=pairs.size)


def barber_poles(
  batch_size: int, *, size: int, cells: int = 4, seed: int = 0, start_step: int = 0
) -> Iterator[dict[str, Array]]:
  """Frames of `cells` x `cells` windows with stripes of random direction; behind them all, one motion for a pair.

  A window shows only how fast its stripes move across themselves, as on a barber's pole (the aperture problem). Stripes
  are 8 to 16 pixels wide and move by up to 2.5 pixels, so a phase is never ambiguous.

  Returns:
    endless batches, a function of (seed, step): 'frames' float32 `[b, 2, size, size, 3]` in 0..255, 'flow'
    `[b, size, size, 2]` in pixels (right, down), 'normal' `[b, size, size, 2]`, the unit vector across the stripes.

  Raises:
    ValueError: if the windows do not fill the frame.
  """
  if size % cells:
    raise ValueError(f'Expected a size that {cells} cells divide; got {size}.')
  for step in itertools.count(start_step):
    key = jax.random.fold_in(jax.random.key(seed), step)
    yield _render_poles(jax.random.uniform(key, (batch_size, 2 + 3 * cells**2)), size=size, cells=cells)


@functools.partial(jax.jit, static_argnames=('size', 'cells'))
def _render_poles(draws: Float[Array, 'b draws'], *, size: int, cells: int) -> dict[str, Array]:
  motion = 2.5 * draws[:, :1] * direction(draws[:, 1])
  windows = rearrange(draws[:, 2:], 'b (kind row column) -> kind b row column', kind=3, row=cells)
  turn, width, phase = repeat(
    windows, 'kind b row column -> kind b (row h) (column w)', h=size // cells, w=size // cells
  )
  normal = direction(turn)
  places = pixel_grid(size)[None]
  # Frame 2 at x shows what frame 1 shows at x - motion.
  along = jnp.stack([(normal * (places - moved)).sum(-1) for moved in (0.0, motion[:, None, None])], axis=1)
  grey = 127.5 + 100 * jnp.sin(2 * jnp.pi * (along / (8 + 8 * width)[:, None] + phase[:, None]))
  return {
    'frames': repeat(grey, 'b t h w -> b t h w c', c=3),
    'flow': repeat(motion, 'b e -> b h w e', h=size, w=size),
    'normal': normal,
  }
