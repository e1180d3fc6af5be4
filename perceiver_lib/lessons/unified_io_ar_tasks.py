"""Notebook 08: what the unified model reads and writes: dates in ISO, words aloud, a film with sound."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from perceiver_lib.data import pronunciation as words
from perceiver_lib.data.dates import PAD, START
from perceiver_lib.data.loading import ArraySource, evaluation_batches
from perceiver_lib.flops import count_flops
from perceiver_lib.generation.beam_search import beam_search
from perceiver_lib.models.transformer import Transformer
from perceiver_lib.models.unified import InputLatents, UnifiedPerceiver
from perceiver_lib.models.unified_cached import UnifiedCache, latents_so_far, start, step
from perceiver_lib.queries import position_queries
from perceiver_lib.scores import signals
from perceiver_lib.scores.sequences import error_rates, until
from perceiver_lib.tokens import SOURCE_TIME, AnyArray, Tokens

Logits = Callable[..., Float[Array, 'b t e']]

# Pairs of sequences: all of the source may be read at every timestep; each timestep writes one symbol of the target.


def source_tokens(source: Int[Array, 'b m']) -> Tokens:
  """Symbols that every timestep may read."""
  b, m = source.shape
  return Tokens(
    values=source,
    position=jnp.arange(m, dtype=jnp.int32)[None, :, None],
    time=jnp.full((b, m), SOURCE_TIME, jnp.int32),
    valid=source != PAD,
  )


def pair_tokens(source: Int[Array, 'b m'], known: Int[Array, 'b t']) -> Tokens:
  """The source, and the symbol that each timestep brings: START at 0, then what was written one step before."""
  tokens, (b, t) = source_tokens(source), known.shape
  steps = jnp.arange(t, dtype=jnp.int32)
  return Tokens(
    values=jnp.concatenate([tokens.values, known], axis=1),
    position=jnp.arange(tokens.num_tokens + t, dtype=jnp.int32)[None, :, None],
    time=jnp.concatenate([tokens.time, jnp.broadcast_to(steps, (b, t))], axis=1),
    valid=jnp.concatenate([tokens.valid, known != PAD], axis=1),
  )


def shifted(target: Int[Array, 'b t']) -> Int[Array, 'b t']:
  """What is known at each timestep: START, and all symbols but the last."""
  return jnp.concatenate([jnp.full_like(target[:, :1], START), target[:, :-1]], axis=1)


def step_queries(batch_size: int, num_timesteps: int) -> Tokens:
  """One question a timestep: what comes next?"""
  steps = jnp.arange(num_timesteps, dtype=jnp.int32)
  return position_queries(
    steps[:, None], batch_size=batch_size, time=jnp.broadcast_to(steps, (batch_size, num_timesteps))
  )


def unified_logits(
  model: UnifiedPerceiver, source: Int[Array, 'b m'], known: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of the next symbol at every timestep, by a query or, with an identity decoder, by the timestep's latent."""
  b, t = known.shape
  if isinstance(model.config.latents, InputLatents):
    # The newest valid inputs become latents, one at each timestep, also at those that bring nothing yet.
    return model(pair_tokens(source, jnp.where(known == PAD, START, known)), rngs=rngs).values
  return model(pair_tokens(source, known), step_queries(b, t), num_timesteps=t, rngs=rngs)


def written(
  logits: Logits, model: nnx.Module, source: Int[np.ndarray, 'n m'], num_timesteps: int, *, batch_size: int
) -> Int[np.ndarray, 'n t']:
  """The likeliest symbols, one after another, each step from scratch: also by a model that no cache fits.

  Args:
    logits: compiled. It is given all timesteps, of which the later ones bring nothing yet.
  """
  parts = []
  for batch in evaluation_batches(ArraySource({'source': source}), batch_size):
    known = np.full((batch_size, num_timesteps + 1), PAD, np.int32)
    known[:, 0] = START
    for t in range(num_timesteps):
      known[:, t + 1] = np.asarray(logits(model, batch['source'], known[:, :-1]))[:, t].argmax(-1)
    parts.append(known[:, 1:])
  return np.concatenate(parts)[: len(source)]


def told(
  logits: Logits, model: nnx.Module, source: Int[np.ndarray, 'n m'], target: Int[np.ndarray, 'n t'], *, batch_size: int
) -> Int[np.ndarray, 'n t']:
  """The likeliest symbols where the right past is given at every timestep, as in training."""
  parts = []
  for batch in evaluation_batches(ArraySource({'source': source, 'target': target}), batch_size):
    known = shifted(jnp.asarray(batch['target']))
    parts.append(np.asarray(logits(model, batch['source'], known)).argmax(-1))
  return np.concatenate(parts)[: len(source)].astype(np.int32)


# Words: letters are the source, one phoneme a timestep is the target.


def transformer_logits(
  model: Transformer, letters: Int[Array, 'b m'], known: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of the next phoneme at every timestep."""
  return model(pair_tokens(letters, known), rngs=rngs)[:, words.MAX_LETTERS :]


def flops_of_word(logits: Logits, model: nnx.Module, num_timesteps: int) -> int:
  """Operations of one forward pass over one word, as `perceiver_lib.flops` counts them."""
  letters, known = (jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (words.MAX_LETTERS, num_timesteps))
  return count_flops(logits, model, letters, known)


@functools.partial(jax.jit, static_argnames='num_beams')
def speak(model: UnifiedPerceiver, letters: Int[Array, 'b m'], *, num_beams: int = 1) -> Int[Array, 'b t']:
  """The phonemes of each word by beam search over the cache: a step computes the S latents of the new timestep only."""
  t = model.config.latents.num_timesteps

  def append(cache: UnifiedCache, newest: Int[Array, 'r']) -> tuple[UnifiedCache, Float[Array, 'r e']]:
    time, rows = cache.next_step, len(newest)
    place = jnp.full((1, 1, 1), words.MAX_LETTERS, jnp.int32) + time
    cache, _ = step(model, cache, Tokens(values=newest[:, None], position=place))
    asked = position_queries(time[None, None], batch_size=rows, time=jnp.broadcast_to(time, (rows, 1)))
    return cache, model.decode(latents_so_far(model, cache), asked)[:, 0]

  cache, _ = start(model, source_tokens(letters), num_timesteps=0, max_timesteps=t)
  return _searched(append, cache, len(letters), num_beams, t)


@functools.partial(jax.jit, static_argnames=('num_beams', 'num_timesteps'))
def speak_by_transformer(
  model: Transformer, letters: Int[Array, 'b m'], *, num_timesteps: int, num_beams: int = 1
) -> Int[Array, 'b t']:
  """The same search over the Transformer's cache."""
  append = lambda cache, newest: model.step(cache, Tokens(values=newest[:, None]))  # noqa: E731
  cache, _ = model.start(source_tokens(letters), room=num_timesteps)
  return _searched(append, cache, len(letters), num_beams, num_timesteps)


def _searched(append: Callable, cache: Any, num_words: int, num_beams: int, num_tokens: int) -> Int[Array, 'b t']:
  cache, scores = append(cache, jnp.full((num_words,), START, jnp.int32))
  beams = beam_search(append, cache, scores, num_beams=num_beams, num_tokens=num_tokens, end_token=words.END)
  return beams.tokens[:, 0]


def spoken(
  speak: Callable[[Int[Array, 'b m']], Int[Array, 'b t']], held_out: words.WordSource, *, batch_size: int
) -> list[np.ndarray]:
  """The phonemes that `speak` makes of each word's letters."""
  batches = evaluation_batches(held_out, batch_size)
  said = np.concatenate([np.asarray(speak(batch['letters'])) for batch in batches])[: len(held_out)]
  return until(said, words.END)


def errors_by_length(
  said: Sequence[Sequence[int] | np.ndarray], held_out: words.WordSource, lengths: Sequence[int]
) -> list[float]:
  """Phoneme error rates in % of words of so many letters; shorter words count as the first, longer as the last."""
  letters = np.clip([len(word) for word in held_out.words], lengths[0], lengths[-1])
  chosen = [np.flatnonzero(letters == length) for length in lengths]
  return [
    100 * error_rates([said[row] for row in rows], [held_out.variants[row] for row in rows]).token_error_best
    for rows in chosen
  ]


def aligned(
  logits: Logits, model: nnx.Module, word: str, letters: Int[np.ndarray, 'm'], said: Int[np.ndarray, 't']
) -> tuple[list[str], list[str], Float[np.ndarray, 'o w']]:
  """Letters, phonemes, and how much each phoneme misses each letter, for `plots.alignment`."""
  names = words.spell(said).split(' ')
  return (
    list(word),
    names,
    missed(logits, model, jnp.asarray(letters)[None], jnp.asarray(said)[None])[0, : len(names), : len(word)],
  )


def log_probabilities(logits: Float[Array, 'b t e'], target: Int[Array, 'b t']) -> Float[Array, 'b t']:
  return jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]


def missed(
  logits: Logits, model: nnx.Module, source: Int[Array, 'b m'], target: Int[Array, 'b t']
) -> Float[np.ndarray, 'b t m']:
  """Probability that each right symbol loses while one symbol of the source is padding, every one in turn."""

  @jax.jit
  def probability(model: nnx.Module, source: Array) -> Float[Array, 'b t']:
    return jnp.exp(log_probabilities(logits(model, source, shifted(target)), target))

  whole = probability(model, source)
  lost = [whole - probability(model, source.at[:, place].set(PAD)) for place in range(source.shape[1])]
  return np.stack([np.asarray(one) for one in lost], axis=-1)


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
  return signals.decibels(1.0, float(np.square(difference).mean()))


def as_picture(frame: Num[np.ndarray, 'n k']) -> Num[np.ndarray, 'y x']:
  """The cells of a frame in their places."""
  return rearrange(frame, '(i j) (y x) -> (i y) (j x)', i=FILM_SIDE, y=8)
