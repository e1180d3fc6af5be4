"""Cached generation equals recomputation, for tokens and for frames, inside the window and beyond it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig, IdentityDecoderConfig
from perceiver_lib.generation.beam_search import beam_search
from perceiver_lib.generation.timesteps import TimestepWindow, generate
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.unified import (
  InputLatents,
  LearnedLatents,
  UnifiedPerceiver,
  UnifiedPerceiverConfig,
)
from perceiver_lib.models.unified_cached import latents_so_far, start, step
from perceiver_lib.parameters import filled
from perceiver_lib.positions import FourierFeatures, Rotary
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from tests.support import assert_close

pytestmark = pytest.mark.gpu

BATCH, STEPS, LATENTS, VOCABULARY, PIXELS, LETTERS = 2, 7, 2, 11, 5, 3
LETTER_ADAPTER = EmbeddingAdapterConfig(num_embeddings=VOCABULARY, num_channels=6)
PIXEL_ADAPTER = FeatureAdapterConfig(num_values=1, position=FourierFeatures(num_bands=2, max_resolution=(PIXELS,)))
BOTH = ModalityAdaptersConfig(modalities=(('letters', LETTER_ADAPTER), ('pixels', PIXEL_ADAPTER)), num_channels=9)
FRAME_DECODER = DecoderConfig(queries=LearnedQueries(num_queries=PIXELS, num_channels=8), num_outputs=1)
SOURCE = {
  'letters': Tokens(
    values=jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32),
    time=jnp.full((BATCH, LETTERS), SOURCE_TIME, jnp.int32),
    valid=jnp.array([[True, True, True], [True, False, False]]),
  )
}


def model_of(window=None, num_blocks=1, *, frames=True):
  config = UnifiedPerceiverConfig(
    input_adapter=BOTH if frames else LETTER_ADAPTER,
    latents=LearnedLatents(num_latents=LATENTS, num_timesteps=STEPS, encoder_window=window),
    num_latent_channels=12,
    num_blocks=num_blocks,
    num_self_attends_per_block=2,
    self_attend=LayerConfig(num_heads=2, rotary=Rotary()),
    decoder=FRAME_DECODER if frames else IdentityDecoderConfig(num_outputs=VOCABULARY),
  )
  return filled(UnifiedPerceiver(config, rngs=nnx.Rngs(0)), scale=0.3, seed=1)


def frame_tokens(values):
  position = jnp.linspace(-1, 1, PIXELS)[None, :, None]
  return {'pixels': Tokens(values=values[..., None], position=position)}


def frames(num_steps, seed=2):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(BATCH, num_steps, PIXELS)), jnp.float32)


def frames_in_time(values):
  """All tokens of frames `[b, t, n]`, latest first."""
  t = values.shape[1]
  flat = Tokens(
    values=values.reshape(BATCH, -1, 1),
    position=jnp.tile(jnp.linspace(-1, 1, PIXELS), t)[None, :, None],
    time=jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32).repeat(PIXELS), (BATCH, t * PIXELS)),
  )
  return SOURCE | {'pixels': jax.tree.map(lambda x: x[:, ::-1], flat)}


@pytest.mark.parametrize(('window', 'num_blocks', 'known'), [(None, 1, 0), (None, 2, 2), (1, 1, 2), (3, 2, 0)])
def test_each_cached_timestep_equals_a_recomputation_of_everything(window, num_blocks, known):
  model, values = model_of(window, num_blocks), frames(STEPS)
  expected = jax.jit(lambda model: model.encode(frames_in_time(values), chunk_size=4))(model)
  begin = functools.partial(start, num_timesteps=known, max_timesteps=STEPS)
  inputs = frames_in_time(values[:, :known]) if known else SOURCE
  cache, latents = jax.jit(lambda model: begin(model, inputs))(model)
  assert_close(latents.values, expected.values[:, : known * LATENTS])
  advance = jax.jit(lambda model, cache, frame: step(model, cache, frame_tokens(frame)))
  for time in range(known, STEPS):
    cache, latents = advance(model, cache, values[:, time])
    assert_close(latents.values, expected.values[:, time * LATENTS : (time + 1) * LATENTS], 2e-6)
    assert latents.time.tolist() == [[time] * LATENTS] * BATCH
  whole = latents_so_far(model, cache)
  assert_close(whole.values, expected.values, 2e-6)
  assert np.array_equal(whole.time, expected.time) and bool(whole.valid.all())


def by_recomputation(model, history, num_steps, window, choose, inputs_of, queries=None):
  """Nothing cached: where a window is full, its newest timesteps are all that is read from then on."""

  @jax.jit
  def chosen(model, recent, queries):
    count = recent.shape[1]
    latents = model.encode(inputs_of(recent), num_timesteps=count)
    if queries is None:
      return choose(model.decode(latents).values[:, -LATENTS:], None)
    time = jnp.full(queries.values.shape[:2], count - 1, jnp.int32)
    return choose(model.decode(latents, dataclasses.replace(queries, time=time)), None)

  values, first = history, 0
  for _ in range(num_steps):
    if values.shape[1] - first > window.max_timesteps:
      first = values.shape[1] - window.num_kept
    values = jnp.concatenate([values, chosen(model, values[:, first:], queries)[:, None]], axis=1)
  return values[:, history.shape[1] :]


@pytest.mark.parametrize(('known', 'encoder_window'), [(2, None), (9, 2)])
def test_frames_are_generated_as_by_recomputation_also_beyond_the_window(known, encoder_window):
  model, history = model_of(encoder_window), frames(known)
  queries = Tokens(values=jnp.broadcast_to(jnp.arange(PIXELS), (BATCH, PIXELS)))
  window = TimestepWindow(max_timesteps=5, num_kept=3)

  def choose(outputs, key):
    return jnp.tanh(outputs[..., 0])

  settings = {'num_steps': 8, 'window': window, 'choose': choose, 'queries': queries}
  actual = generate(model, history, tokens_of=frame_tokens, source=SOURCE, **settings)
  expected = by_recomputation(model, history, 8, window, choose, frames_in_time, queries)
  assert_close(actual, expected, 1e-5)
  assert np.abs(np.diff(np.asarray(actual), axis=1)).max() > 1e-3


def letters_in_time(ids):
  source, t = SOURCE['letters'], ids.shape[1]
  return Tokens(
    values=jnp.concatenate([source.values, ids], axis=1),
    time=jnp.concatenate([source.time, jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (BATCH, t))], axis=1),
    valid=jnp.concatenate([source.valid, jnp.ones((BATCH, t), bool)], axis=1),
  )


def letter_tokens(ids):
  return Tokens(values=ids[:, None])


def likeliest(outputs, key):
  return jnp.argmax(outputs.sum(axis=1), axis=-1).astype(jnp.int32)


def test_tokens_are_generated_as_by_recomputation_and_by_a_beam_of_one():
  model, history = model_of(frames=False), jnp.array([[7], [8]], jnp.int32)
  window = TimestepWindow(max_timesteps=6, num_kept=2)
  settings = {'window': window, 'choose': likeliest}
  actual = generate(model, history, num_steps=9, tokens_of=letter_tokens, source=SOURCE['letters'], **settings)
  expected = by_recomputation(model, history, 9, window, likeliest, letters_in_time)
  assert np.array_equal(actual, expected)
  assert len(set(np.asarray(actual).ravel().tolist())) > 2

  @jax.jit
  def search(model):
    def scores(latents):
      return model.decode(latents).values.sum(axis=1)

    def append(cache, ids):
      cache, latents = step(model, cache, letter_tokens(ids))
      return cache, scores(latents)

    cache, latents = start(model, letters_in_time(history), num_timesteps=1, max_timesteps=6)
    settings = {'num_tokens': 6, 'end_token': VOCABULARY}
    one = beam_search(append, cache, scores(latents), num_beams=1, **settings)
    return one, beam_search(append, cache, scores(latents), num_beams=3, **settings)

  one, three = search(model)
  assert np.array_equal(one.tokens[:, 0], expected[:, :6])
  assert np.all(three.log_probabilities[:, 0] >= one.log_probabilities[:, 0])


def test_draws_depend_on_the_seed_and_on_nothing_else_and_never_on_nan():
  model, history = model_of(frames=False), jnp.array([[7], [8]], jnp.int32)

  def draw(outputs, key):
    return jax.random.categorical(key, outputs.sum(axis=1)).astype(jnp.int32)

  settings = {'num_steps': 5, 'window': TimestepWindow(max_timesteps=3, num_kept=2)}
  run = functools.partial(generate, model, history, choose=draw, tokens_of=letter_tokens, **settings)
  assert np.array_equal(run(seed=1), run(seed=1)) and not np.array_equal(run(seed=1), run(seed=2))
  model.input_adapter.embedding[...] = jnp.full_like(model.input_adapter.embedding[...], jnp.nan)
  with pytest.raises(FloatingPointError, match='outputs of new timestep 0 are NaN'):
    run(seed=1)


def test_refuses_what_it_cannot_do():
  model, history = model_of(frames=False), jnp.array([[7], [8]], jnp.int32)
  with pytest.raises(ValueError, match='<= 7, the timesteps of this model; got 1 and 8'):
    start(model, letters_in_time(history), num_timesteps=1, max_timesteps=8)
  with pytest.raises(ValueError, match='1 <= num_kept <= max_timesteps; got 4, 3'):
    TimestepWindow(max_timesteps=3, num_kept=4)
  settings = {'window': TimestepWindow(max_timesteps=3, num_kept=1), 'choose': likeliest, 'tokens_of': letter_tokens}
  with pytest.raises(ValueError, match='at least one known and one new timestep; got 0, 3'):
    generate(model, history[:, :0], num_steps=3, **settings)
  with pytest.raises(ValueError, match=r"must be of the modalities \['letters', 'pixels'\]; got \['sound'\]"):
    start(model_of(), {'sound': letters_in_time(history)}, num_timesteps=1, max_timesteps=3)
  latents = InputLatents(num_latents=3)
  config = dataclasses.replace(model.config, latents=latents, self_attend=LayerConfig(num_heads=2))
  with pytest.raises(ValueError, match='this cache is for learned latents'):
    start(UnifiedPerceiver(config, rngs=nnx.Rngs(0)), letters_in_time(history), num_timesteps=1, max_timesteps=3)
