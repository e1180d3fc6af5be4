"""Big Buck Bunny as raw pixels and samples: clips of consecutive frames with their sound.

(c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0; downscaled, resampled and re-encoded for this package
(`assets/README.md`). Whoever shows frames of it must give that credit.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from perceiver_lib.data.base import DataSet, Provenance, sha256

CREDIT = 'Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0; downscaled and re-encoded'
FRAMES_PER_SECOND = 12
SAMPLES_PER_SECOND = 16_000
HEIGHT, WIDTH = 64, 112
STORY_FRAMES = 5870
"""The credits begin here; nothing behind is used."""
BLOCK_FRAMES = 20 * FRAMES_PER_SECOND
_VALIDATION_BLOCK, _TEST_BLOCK, _BLOCK_CYCLE = 2, 5, 6
_ENCODER_DELAY = 1024
_FILE = 'bbb_112x64_12fps_16k.mp4'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
  """The story of the film, decoded.

  Attributes:
    frames: red, green, blue.
    samples: mono, in about [-0.8, 0.8], from the first frame on.
    cuts: whether the picture changes abruptly from the frame before: a film cut, or as good as one.
  """

  frames: UInt8[np.ndarray, 't y x 3']
  samples: Float32[np.ndarray, 'samples']
  cuts: Bool[np.ndarray, 't']


def path() -> Path:
  """The film's file, which this package ships."""
  return Path(str(importlib.resources.files('perceiver_lib.data') / 'assets' / _FILE))


@functools.lru_cache(maxsize=2)
def read(scale: int = 1) -> Film:
  """Decodes the story: 5,870 frames of 64 x 112 pixels, or smaller by averaging squares of scale x scale pixels.

  Takes a few seconds and 126 MB at full size; the last two scales are kept.

  Raises:
    ModuleNotFoundError: with the pip command, if PyAV is missing.
    ValueError: if the scale does not divide both sides, or the file is another one.
  """
  if scale < 1 or HEIGHT % scale or WIDTH % scale:
    raise ValueError(f'The scale must divide {HEIGHT} and {WIDTH} pixels: 1, 2, 4, 8 or 16; got {scale}.')
  try:
    import av
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError('Films are decoded by PyAV: pip install av', name='av') from error

  frames = np.empty((STORY_FRAMES, HEIGHT, WIDTH, 3), np.uint8)
  number = -1
  with av.open(str(path())) as container:
    for number, frame in zip(range(STORY_FRAMES), container.decode(video=0), strict=False):
      frames[number] = frame.to_ndarray(format='rgb24')
  if number + 1 != STORY_FRAMES:
    raise ValueError(f'{path()} must have {STORY_FRAMES} frames or more; got {number + 1}. Install the package anew.')
  with av.open(str(path())) as container:
    packets = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
  samples = np.concatenate(packets)[_ENCODER_DELAY:][: sample_index(STORY_FRAMES)]
  return Film(frames=averaged(frames, scale), samples=samples, cuts=find_cuts(averaged(frames, 4)))


def averaged(frames: UInt8[np.ndarray, 't y x c'], scale: int) -> UInt8[np.ndarray, 't h w c']:
  """Frames whose pixels are the rounded means of squares of scale x scale pixels."""
  if scale == 1:
    return frames
  squares = itertools.product(range(scale), repeat=2)
  # Whole-array sums of every scale-th pixel: ten times faster than a mean over two short axes.
  total = sum(frames[:, i::scale, j::scale].astype(np.uint16) for i, j in squares)
  return ((total + scale**2 // 2) // scale**2).astype(np.uint8)


def sample_index(frame: Any) -> Any:
  """The first sample of a frame: 16,000 / 12 samples a frame are no whole number, so time decides, not a count."""
  return np.rint(np.asarray(frame) * SAMPLES_PER_SECOND / FRAMES_PER_SECOND).astype(np.int64)


def find_cuts(
  frames: UInt8[np.ndarray, 't y x c'], *, threshold: float = 20.0, ratio: float = 1.5, reach: int = 4
) -> Bool[np.ndarray, 't']:
  """Where a frame differs from the one before by far more than its neighbours do; the first frame never counts.

  Args:
    frames: 0..255, averaged over small squares, so that fine texture in motion counts little.
    threshold: least mean absolute difference.
    ratio: least ratio to the second largest difference within `reach` frames on both sides.
  """
  difference = np.concatenate([[0.0], np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))])
  padded = np.pad(difference, reach, mode='edge')
  around = np.delete(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), reach, axis=1)
  return (difference > threshold) & (difference > ratio * np.sort(around, axis=1)[:, -2])


def runs(split: str) -> Iterator[tuple[int, int]]:
  """First and last + 1 frame of every run of blocks of one split: of six blocks of 20 s one is test, one validation."""
  names = {_VALIDATION_BLOCK: 'validation', _TEST_BLOCK: 'test'}
  blocks = range(0, STORY_FRAMES, BLOCK_FRAMES)
  of_split = [names.get(number % _BLOCK_CYCLE, 'train') == split for number in range(len(blocks))]
  edges = np.flatnonzero(np.diff(of_split, prepend=False, append=False))
  for first, last in edges.reshape(-1, 2).tolist():
    yield first * BLOCK_FRAMES, min(last * BLOCK_FRAMES, STORY_FRAMES)


class Clips:
  """Random access to clips of one film; clip i begins at frame `starts[i]`.

  Each example: 'frames' uint8 `[t, y, x, 3]`; 'samples' float32 `[l]`, the sound from the first frame on, l the most
  whole patches of 16 samples that t frames have; 'cuts' bool `[t]`, False for the first frame; 'start'.
  """

  def __init__(self, film: Film, starts: Int[np.ndarray, 'n'], num_frames: int):
    self.film, self.starts, self.num_frames = film, starts, num_frames
    self.num_samples = (num_frames * SAMPLES_PER_SECOND // FRAMES_PER_SECOND) // 16 * 16

  def first(self, count: int | None) -> Clips:
    """The first clips, None = all."""
    return Clips(self.film, self.starts[:count], self.num_frames)

  def __len__(self) -> int:
    return len(self.starts)

  def __getitem__(self, index: int) -> dict[str, Any]:
    start = int(self.starts[index])
    stop = start + self.num_frames
    first = int(sample_index(start))
    cuts = self.film.cuts[start:stop].copy()
    cuts[0] = False
    samples = self.film.samples[first : first + self.num_samples]
    return {'frames': self.film.frames[start:stop], 'samples': samples, 'cuts': cuts, 'start': np.int32(start)}


def load(*, num_frames: int, scale: int = 1, stride: int = 1) -> DataSet:
  """Clips of `num_frames` frames: 17 / 4 / 4 blocks of 20 s for training, validation and test; every split is `Clips`.

  Training clips begin at every `stride`-th frame and keep one clip's length away from held-out blocks; held-out clips
  follow each other without overlap and fill their blocks.

  Raises:
    ModuleNotFoundError, ValueError: as `read`, or for clips that are too long for a block.
  """
  if not 1 <= num_frames <= BLOCK_FRAMES // 2 or stride < 1:
    raise ValueError(
      f'Clips need 1 to {BLOCK_FRAMES // 2} frames and a stride of 1 or more; got {num_frames} frames, stride {stride}.'
    )
  film = read(scale)
  sources = {
    split: Clips(film, _starts(split, num_frames, stride), num_frames) for split in ('train', 'validation', 'test')
  }
  return DataSet(
    **sources,
    provenance=Provenance(
      name='Big Buck Bunny',
      kind='real',
      source=f'{_FILE}, shipped with perceiver_lib; 12 frames, 16,000 samples a second; 1/{scale} of 64 x 112 pixels',
      licence=CREDIT,
      counts={f'{split} clips': len(clips) for split, clips in sources.items()},
      checksum=sha256([path().read_bytes()]),
      note=f'clips of {num_frames} frames; of six blocks of 20 s one is test and one validation, a clip apart from '
      f'training; without credits; {film.cuts.sum()} cuts',
    ),
  )


def _starts(split: str, num_frames: int, stride: int) -> Int[np.ndarray, 'n']:
  """Held-out blocks keep all their frames; the gap is taken from training on both sides of them."""
  starts = []
  for first, last in runs(split):
    if split != 'train':
      starts.append(np.arange(first, last - num_frames + 1, num_frames))
      continue
    first += num_frames if first > 0 else 0
    last -= num_frames if last < STORY_FRAMES else 0
    starts.append(np.arange(first, last - num_frames + 1, stride))
  return np.concatenate(starts)
