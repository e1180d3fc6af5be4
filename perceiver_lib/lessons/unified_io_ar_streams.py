"""Notebook 08: a canvas of bytes that is said letter by letter, and a film whose sound tells what comes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from perceiver_lib.data import pronunciation as words
from perceiver_lib.lessons.unified_io_ar_tasks import step_queries
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.models.transformer import Transformer
from perceiver_lib.models.unified import UnifiedPerceiver
from perceiver_lib.queries import position_queries
from perceiver_lib.scores.signals import psnr
from perceiver_lib.tokens import SOURCE_TIME, AnyArray, Tokens

# Three digits somewhere on a canvas of raw bytes: the bytes are the source, one letter a timestep is the target.

NUMBERS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
SPACE = words.FIRST_PHONEME
NUM_LETTERS = SPACE + 1
"""Ids of PAD, START, END, the letters and the space."""
CANVAS_TIMESTEPS = 18
"""Letters, spaces and the end of `three seven eight`, the longest."""


def canvases(
  digits: Mapping[str, np.ndarray], count: int, *, side: int, shrink: int, seed: int, step: int = 0
) -> dict[str, np.ndarray]:
  """Three digits each, one in each third of the width and anywhere in it, at any height.

  Args:
    digits: 'image' uint8 [n, y, x, 1] and 'label'.
    shrink: digits are averaged over squares of so many pixels.

  Returns:
    'canvas' uint8 [count, side, side], 'target' int32 [count, 18] from left to right, 'label' [count, 3].
  """
  random = np.random.default_rng((seed, step))
  rows = random.integers(0, len(digits['label']), (count, 3))
  size = digits['image'].shape[1] // shrink
  images = reduce(
    digits['image'][rows, ..., 0].astype(np.float32), 'b n (y i) (x j) -> b n y x', 'mean', i=shrink, j=shrink
  )
  left, top = (random.integers(0, room - size + 1, (count, 3)) for room in (side // 3, side))
  canvas, labels = np.zeros((count, side, side), np.uint8), digits['label'][rows]
  for row, (number, x) in itertools.product(range(count), enumerate(range(0, 3 * (side // 3), side // 3))):
    place = slice(top[row, number], top[row, number] + size), slice(x + left[row, number], x + left[row, number] + size)
    canvas[row][place] = images[row, number].round()
  said = [' '.join(NUMBERS[label] for label in three) for three in labels]
  return {'canvas': canvas, 'target': number_ids(said), 'label': labels}


def number_ids(texts: Sequence[str]) -> Int[np.ndarray, 'n 18']:
  """Ids of the letters and spaces, with END, padded on the right."""
  ids = np.full((len(texts), CANVAS_TIMESTEPS), words.PAD, np.int32)
  for row, text in zip(ids, texts, strict=True):
    row[: len(text)] = [SPACE if c == ' ' else words.FIRST_LETTER + words.LETTERS.index(c) for c in text]
    row[len(text)] = words.END
  return ids


def spell_numbers(row: Sequence[int] | Int[np.ndarray, 't']) -> str:
  """The text of ids up to END."""
  row = [int(number) for number in row]
  row = row[: row.index(words.END)] if words.END in row else row
  names = dict(enumerate(words.LETTERS, words.FIRST_LETTER)) | {SPACE: ' '}
  return ''.join(names.get(number, '') for number in row)


def canvas_source(canvas: UInt8[AnyArray, 'b y x']) -> dict[str, Tokens]:
  """Every byte a token that every timestep may read."""
  tokens = pixel_tokens(jnp.asarray(canvas)[..., None])
  return {'canvas': dataclasses.replace(tokens, time=jnp.full(tokens.values.shape[:2], SOURCE_TIME, jnp.int32))}


def newest_letter(newest: Int[Array, 'r'], time: Int[Array, '']) -> dict[str, Tokens]:
  """What a timestep brings; the timestep says where it stands."""
  return {'said': Tokens(values=newest[:, None])}


def canvas_logits(
  model: UnifiedPerceiver, canvas: UInt8[AnyArray, 'b y x'], known: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of the next letter at every timestep."""
  b, t = known.shape
  time = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
  said = Tokens(values=known, time=time, valid=known != words.PAD)
  return model(canvas_source(canvas) | {'said': said}, step_queries(b, t), num_timesteps=t, rngs=rngs)


def patch_tokens(canvas: UInt8[AnyArray, 'b y x'], patch: int) -> Tokens:
  """For a Transformer: squares of patch x patch bytes, 1 = every byte a token, as wide as the letters' one-hot."""
  values = rearrange(jnp.asarray(canvas), 'b (y i) (x j) -> b (y x) (i j)', i=patch, j=patch)
  b, m, width = values.shape
  values = jnp.pad(values, ((0, 0), (0, 0), (0, max(width, NUM_LETTERS) - width)))
  return Tokens(values=values, time=jnp.full((b, m), SOURCE_TIME, jnp.int32))


def letters_as_bytes(newest: Int[Array, 'r'], time: Int[Array, ''], *, width: int) -> Tokens:
  """Letters among the tokens of `patch_tokens`: one byte of 255."""
  return Tokens(values=255 * jax.nn.one_hot(newest[:, None], width, dtype=jnp.uint8))


def patch_logits(
  model: Transformer,
  canvas: UInt8[AnyArray, 'b y x'],
  known: Int[Array, 'b t'],
  rngs: nnx.Rngs | None = None,
  *,
  patch: int,
) -> Float[Array, 'b t e']:
  """Scores of the next letter at every timestep, by a prefix Transformer."""
  source, (b, t) = patch_tokens(canvas, patch), known.shape
  m, width = source.values.shape[1:]
  letters = 255 * jax.nn.one_hot(known, width, dtype=jnp.uint8)
  time = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
  tokens = Tokens(
    values=jnp.concatenate([source.values, letters], axis=1),
    time=jnp.concatenate([source.time, time], axis=1),
    valid=jnp.concatenate([jnp.ones((b, m), bool), known != words.PAD], axis=1),
  )
  return model(tokens, rngs=rngs)[:, m:]


def cut_out_and_compare(
  digits: Mapping[str, np.ndarray], canvas: UInt8[np.ndarray, 'b y x'], shrink: int
) -> np.ndarray:
  """What a program for this very task says: the ink of each third, cut out, and the nearest of all training digits."""
  third, size = canvas.shape[2] // 3, digits['image'].shape[1] // shrink

  def cut(images: np.ndarray) -> np.ndarray:
    found = np.zeros((len(images), size, size), np.float32)
    for row, image in zip(found, images, strict=True):
      ys, xs = np.nonzero(image > 32)
      if len(ys):
        ink = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        y, x = (size - ink.shape[0]) // 2, (size - ink.shape[1]) // 2
        row[y : y + ink.shape[0], x : x + ink.shape[1]] = ink
    return found.reshape(len(found), -1)

  shrunk = reduce(digits['image'][..., 0].astype(np.float32), 'b (y i) (x j) -> b y x', 'mean', i=shrink, j=shrink)
  known = cut(shrunk)
  labels = []
  for number in range(3):
    asked = cut(canvas[:, :, number * third : (number + 1) * third])
    distance = (known**2).sum(1)[None] - 2 * asked @ known.T
    labels.append(digits['label'][distance.argmin(1)])
  return np.stack(labels, axis=1)


# A film of a digit that jumps, and a tone that tells where it will be.

FILM_FRAMES, FILM_SIDE = 6, 3
"""Frames that are predicted, each from those before; a frame has 3 x 3 cells, each of which holds a digit of 8 x 8."""
NUM_CELLS, CELL_VALUES, NUM_TONES = FILM_SIDE**2, 64, 32


def films(images: UInt8[np.ndarray, 'n 8 8 1'], count: int, *, seed: int, step: int = 0) -> dict[str, np.ndarray]:
  """A digit stays in its cell or, in half of the frames, jumps to any other; the sound of a frame names the next cell.

  Returns:
    'frames' uint8 [count, 7, 9, 64], by cells; 'sound' float32 [count, 6, 32], the spectrum of each frame's 64 samples,
    a tone of any phase with noise; 'jumps' bool [count, 6], whether the next frame differs; 'heard' bool [count, 1],
    False for a quarter, whose sound a training hides.
  """
  random = np.random.default_rng((seed, step))
  t, n = FILM_FRAMES, NUM_CELLS
  jumps = random.random((count, t)) < 0.5
  moves = np.concatenate([random.integers(0, n, (count, 1)), jumps * random.integers(1, n, (count, t))], axis=1)
  cells = moves.cumsum(1) % n
  digits = rearrange(images, 'n y x 1 -> n (y x)')[random.integers(0, len(images), count)]
  frames = (cells[..., None] == np.arange(n))[..., None] * digits[:, None, None]
  turns = (3 + 3 * cells[:, 1:, None]) * np.arange(CELL_VALUES) / CELL_VALUES + random.random((count, t, 1))
  samples = np.sin(2 * np.pi * turns) + 0.1 * random.standard_normal(turns.shape)
  sound = np.abs(np.fft.rfft(samples))[..., 1 : NUM_TONES + 1].astype(np.float32) / NUM_TONES
  return {'frames': frames.astype(np.uint8), 'sound': sound, 'jumps': jumps, 'heard': random.random((count, 1)) < 0.75}


def next_frames(
  model: UnifiedPerceiver,
  frames: UInt8[AnyArray, 'b u n k'],
  sound: Float[AnyArray, 'b t f'],
  heard: Bool[AnyArray, 'b 1'],
  rngs: nnx.Rngs | None = None,
) -> Float[Array, 'b t n k']:
  """The next frame after each, from all frames and sounds up to it; a film that is not heard has no sound."""
  b, t, n = len(frames), sound.shape[1], frames.shape[2]
  place = jnp.tile(jnp.arange(n, dtype=jnp.int32), t)[:, None]
  steps = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
  time = jnp.repeat(steps, n, axis=1)
  inputs = {
    'picture': Tokens(
      values=rearrange(jnp.asarray(frames)[:, :t], 'b t n k -> b (t n) k'), position=place[None], time=time
    ),
    'sound': Tokens(values=jnp.asarray(sound), time=steps, valid=jnp.broadcast_to(heard, (b, t))),
  }
  predicted = model(inputs, position_queries(place, batch_size=b, time=time), num_timesteps=t, rngs=rngs)
  return rearrange(predicted, 'b (t n) k -> b t n k', t=t)


def decibels(predicted: Float[AnyArray, 'b t n k'], films: Mapping[str, np.ndarray], *, jumps: bool) -> float:
  """PSNR of predictions in [0, 1], over the frames before which the digit jumped, or over the others."""
  where = films['jumps'] == jumps
  difference = np.clip(np.asarray(predicted), 0, 1)[where] - films['frames'][:, 1:][where] / 255.0
  return psnr(255.0**2 * float(np.square(difference).mean()))


def as_picture(frame: Float[np.ndarray, 'n k']) -> Float[np.ndarray, 'y x']:
  """The cells of a frame in their places."""
  return rearrange(frame, '(i j) (y x) -> (i y) (j x)', i=FILM_SIDE, y=8)
