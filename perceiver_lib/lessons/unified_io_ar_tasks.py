"""Notebook 08: what the unified model reads and says in three tasks: words aloud, digits by name, the next frame."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from perceiver_lib.data import pronunciation as words
from perceiver_lib.data.film import FRAMES_PER_SECOND, SAMPLES_PER_SECOND, Clips
from perceiver_lib.data.loading import ArraySource, evaluation_batches, stack
from perceiver_lib.flops import count_flops
from perceiver_lib.generation.beam_search import beam_search
from perceiver_lib.generation.timesteps import TimestepWindow, generate
from perceiver_lib.modalities.audio import PATCH_SAMPLES, audio_tokens
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.modalities.text import BOS, EOS, PAD, ByteTokenizer
from perceiver_lib.modalities.video import video_from_patches, video_patches, video_tokens
from perceiver_lib.models.transformer import Transformer
from perceiver_lib.models.unified import UnifiedPerceiver
from perceiver_lib.models.unified_cached import UnifiedCache, latents_so_far, start, step
from perceiver_lib.queries import position_queries
from perceiver_lib.scores.sequences import ErrorRates, error_rates, until
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from perceiver_lib.training.metrics import predict

Inputs = Mapping[str, Tokens]
Logits = Callable[..., Float[Array, 'b t e']]

# Words: letters are the source, one phoneme a timestep is the target.


def source_tokens(letters: Int[Array, 'b m']) -> Tokens:
  """Letters, which every timestep may read."""
  b, m = letters.shape
  return Tokens(
    values=letters,
    position=jnp.arange(m, dtype=jnp.int32)[None, :, None],
    time=jnp.full((b, m), SOURCE_TIME, jnp.int32),
    valid=letters != words.PAD,
  )


def pair_tokens(letters: Int[Array, 'b m'], known: Int[Array, 'b t']) -> Tokens:
  """Letters, and the phoneme that each timestep brings: START at 0, then what was said one step before."""
  source, (b, t) = source_tokens(letters), known.shape
  steps = jnp.arange(t, dtype=jnp.int32)
  return Tokens(
    values=jnp.concatenate([source.values, known], axis=1),
    position=jnp.arange(words.MAX_LETTERS + t, dtype=jnp.int32)[None, :, None],
    time=jnp.concatenate([source.time, jnp.broadcast_to(steps, (b, t))], axis=1),
    valid=jnp.concatenate([source.valid, known != words.PAD], axis=1),
  )


def shifted(phonemes: Int[Array, 'b t']) -> Int[Array, 'b t']:
  """What is known at each timestep: START, and all phonemes but the last."""
  return jnp.concatenate([jnp.full_like(phonemes[:, :1], words.START), phonemes[:, :-1]], axis=1)


def step_queries(batch_size: int, num_timesteps: int) -> Tokens:
  """One question a timestep: what is the next phoneme?"""
  steps = jnp.arange(num_timesteps, dtype=jnp.int32)
  return position_queries(
    steps[:, None], batch_size=batch_size, time=jnp.broadcast_to(steps, (batch_size, num_timesteps))
  )


def unified_logits(
  model: UnifiedPerceiver, letters: Int[Array, 'b m'], known: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of the next phoneme at every timestep."""
  b, t = known.shape
  return model(pair_tokens(letters, known), step_queries(b, t), num_timesteps=t, rngs=rngs)


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
  cache, scores = append(cache, jnp.full((num_words,), words.START, jnp.int32))
  beams = beam_search(append, cache, scores, num_beams=num_beams, num_tokens=num_tokens, end_token=words.END)
  return beams.tokens[:, 0]


def spoken_error_rates(
  speak: Callable[[Int[Array, 'b m']], Int[Array, 'b t']], held_out: words.WordSource, *, batch_size: int = 256
) -> ErrorRates:
  """Phoneme and word error rates of what `speak` makes of the letters."""
  batches = evaluation_batches(held_out, batch_size)
  said = np.concatenate([np.asarray(speak(batch['letters'])) for batch in batches])[: len(held_out)]
  return error_rates(until(said, words.END), held_out.variants)


def aligned(
  logits: Logits, model: nnx.Module, word: str, letters: Int[np.ndarray, 'm'], said: Int[np.ndarray, 't']
) -> tuple[list[str], list[str], Float[np.ndarray, 'o w']]:
  """Letters, phonemes, and `hidden_letter_cost` of their pairs, for `plots.alignment`."""
  names = words.spell(said).split(' ')
  return list(word), names, hidden_letter_cost(logits, model, letters, said)[: len(names), : len(word)]


def hidden_letter_cost(
  logits: Logits, model: nnx.Module, letters: Int[np.ndarray, 'm'], said: Int[np.ndarray, 't']
) -> Float[np.ndarray, 't m']:
  """How much of each phoneme's probability goes when a letter of one word is hidden, every letter in turn.

  Args:
    letters: ids [m] of one word, padded.
    said: ids [t] of its phonemes, padded; they are what the model is given as the past.
  """
  num_letters = len(letters)
  hidden = np.where(np.eye(num_letters, dtype=bool), words.PAD, letters)
  variants = np.concatenate([letters[None], hidden]).astype(np.int32)
  rows = np.broadcast_to(said, (num_letters + 1, len(said)))
  scores = jax.jit(logits)(model, variants, shifted(jnp.asarray(rows)))
  share = np.take_along_axis(np.asarray(jax.nn.softmax(scores)), rows[..., None], axis=-1)[..., 0]
  return (share[:1] - share[1:]).T


# Digits: an image's bytes are the source, its name in bytes is the target, a letter a timestep.

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
NUM_LETTERS = max(map(len, NAMES)) + 1
"""Those of the longest name, and its end: the timesteps."""


def name_ids(labels: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n t']:
  """The bytes of each label's name and EOS, padded on the right."""
  ids = np.full((len(NAMES), NUM_LETTERS), PAD, np.int32)
  for row, name in zip(ids, NAMES, strict=True):
    row[: len(name)] = ByteTokenizer().encode(name)
    row[len(name)] = EOS
  return ids[labels]


Order = Int[np.ndarray, 'm']


def image_tokens(images: Array, order: Int[Array, 'm'] | None = None, place: Int[Array, 'm'] | None = None) -> Inputs:
  """An image as a source.

  Args:
    order: shuffles the tokens, positions with them: the token of rank i is number order[i].
    place: shuffles the positions alone: token i says that it is where token place[i] is.
  """
  tokens = pixel_tokens(images, patch_size=2)
  if order is not None:
    tokens = jax.tree.map(lambda leaf: leaf[:, order], tokens)
  position = tokens.position if place is None else tokens.position[:, place]
  time = jnp.full(tokens.values.shape[:2], SOURCE_TIME, jnp.int32)
  return {'pixels': dataclasses.replace(tokens, position=position, time=time)}


def torn(images: UInt8[np.ndarray, 'n y x c'], place: Order) -> UInt8[np.ndarray, 'n y x c']:
  """What the model is told it sees when positions are shuffled alone."""
  height, channels = images.shape[1], images.shape[3]
  tokens = rearrange(images, 'n (y i) (x j) c -> n (y x) (i j c)', i=2, j=2)
  moved = np.empty_like(tokens)
  moved[:, place] = tokens
  return rearrange(moved, 'n (y x) (i j c) -> n (y i) (x j) c', y=height // 2, i=2, j=2, c=channels)


def next_letter_logits(
  model: UnifiedPerceiver, source: Inputs, names: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of each letter of the names from the image and the letters before it, by each timestep's first latent."""
  known = jnp.concatenate([jnp.full_like(names[:, :1], BOS), names[:, :-1]], axis=1)
  time = jnp.broadcast_to(jnp.arange(known.shape[1], dtype=jnp.int32), known.shape)
  letters = Tokens(values=known, time=time, valid=known != PAD)
  return model({**source, 'letters': letters}, rngs=rngs).values[:, :: model.config.latents.num_latents]


def likeliest_letter(outputs: Float[Array, 'b s e'], key: Array) -> Int[Array, 'b']:
  """What `generate` calls: the byte that the newest timestep's first latent scores highest."""
  del key
  return jnp.argmax(outputs[:, 0], axis=-1)


def one_letter(ids: Int[Array, 'b']) -> Inputs:
  """A timestep's only token."""
  return {'letters': Tokens(values=ids[:, None])}


@jax.jit
def name_letters(
  model: UnifiedPerceiver, images: Array, order: Int[Array, 'm'], place: Int[Array, 'm']
) -> Int[Array, 'b t']:
  """The bytes that the model says one after another, likeliest first; `order` and `place` as in `image_tokens`."""
  return generate(
    model,
    jnp.full((len(images), 1), BOS, jnp.int32),
    num_steps=NUM_LETTERS,
    window=TimestepWindow(max_timesteps=NUM_LETTERS, num_kept=NUM_LETTERS),
    choose=likeliest_letter,
    tokens_of=one_letter,
    source=image_tokens(images, order, place),
  )


def named(
  model: UnifiedPerceiver,
  images: np.ndarray,
  *,
  order: Order | None = None,
  place: Order | None = None,
  batch_size: int = 100,
) -> list[str]:
  """What the model calls each image, by `name_letters`."""
  same = np.arange(images[0].size // 4)
  order, place = (same if rank is None else rank for rank in (order, place))
  batches = evaluation_batches(ArraySource({'image': images}), batch_size)
  ids = np.concatenate([np.asarray(name_letters(model, batch['image'], order, place)) for batch in batches])
  return [ByteTokenizer().decode(row) for row in until(ids[: len(images)], EOS)]


def accuracy_percent(said: list[str], labels: Int[np.ndarray, 'n']) -> float:
  """Share of images whose name was spelled right to the last letter, in %."""
  return 100.0 * float(np.mean([name == NAMES[label] for name, label in zip(said, labels, strict=True)]))


# Film: a timestep brings a whole frame and its sound as bytes; asked for is the next frame.

BYTE = 2 / 255
MOTION_GAIN = 4.0
"""Differences of frames are small beside the frames."""


def film_tokens(frames: Array, samples: Array, patch_size: int) -> Inputs:
  """Blocks and sound with the timestep that brings them. Sound of later timesteps is there, and nobody reads it."""
  usable = samples.shape[1] // PATCH_SAMPLES * PATCH_SAMPLES
  rates = (float(SAMPLES_PER_SECOND), float(FRAMES_PER_SECOND))
  return {
    'audio': audio_tokens(samples[:, :usable], rates=rates),
    'video': video_tokens(frames, (1, patch_size, patch_size), timed=True),
  }


def block_queries(frames: Array, patch_size: int) -> Tokens:
  """One query a block and timestep: the block as it is, in [-1, 1], and four times its change since the last frame."""
  patch = (1, patch_size, patch_size)
  tokens = video_tokens(frames, patch, timed=True)
  scaled = frames.astype(jnp.float32) * BYTE - 1
  change = jnp.concatenate([jnp.zeros_like(scaled[:, :1]), scaled[:, 1:] - scaled[:, :-1]], axis=1)
  values = [video_patches(array, patch) for array in (scaled, MOTION_GAIN * change)]
  return dataclasses.replace(tokens, values=jnp.concatenate(values, axis=-1))


def predicted_frames(
  model: UnifiedPerceiver, frames: Array, samples: Array, patch_size: int, rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t y x c']:
  """The frame after each of the given ones, in bytes but not rounded: the last frame plus what the model adds."""
  t, *shape = frames.shape[1:]
  queries = block_queries(frames, patch_size)
  outputs = model(film_tokens(frames, samples, patch_size), queries, num_timesteps=t, rngs=rngs)
  added = video_from_patches(outputs, (t, *shape), (1, patch_size, patch_size))
  return frames.astype(jnp.float32) + added / BYTE


def predict_clips(
  model: UnifiedPerceiver, clips: Clips, patch_size: int, *, mute: bool = False, batch_size: int = 16
) -> UInt8[np.ndarray, 'n t y x c']:
  """Rounded predictions of frames 1, 2, ... of every clip; `mute` takes the sound away."""
  examples = stack(clips)
  samples = np.zeros_like(examples['samples']) if mute else examples['samples']
  source = ArraySource({'frames': examples['frames'][:, :-1], 'samples': samples})
  return predict(model, _rounded(patch_size), evaluation_batches(source, batch_size))


@functools.cache
def _rounded(patch_size: int) -> Callable[[UnifiedPerceiver, Mapping[str, Array]], Array]:
  def rounded(model: UnifiedPerceiver, batch: Mapping[str, Array]) -> UInt8[Array, 'b t y x c']:
    predicted = predicted_frames(model, batch['frames'], batch['samples'], patch_size)
    return jnp.clip(jnp.round(predicted), 0, 255).astype(jnp.uint8)

  return rounded


def lively_clip(clips: Clips) -> Clips:
  """A clip without a cut whose last frame differs from the one before by more than in three quarters of all clips."""
  examples = stack(clips)
  last, before = (examples['frames'][:, index].astype(np.float32) for index in (-1, -2))
  change = np.where(examples['cuts'].any(1), -1.0, np.square(last - before).mean((1, 2, 3)))
  return Clips(clips.film, clips.starts[[int(np.argsort(change)[3 * len(change) // 4])]], clips.num_frames)
