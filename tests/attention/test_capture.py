"""Attention maps of every path against the NumPy statement of the maths, which knows none of these paths."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.attention import block_causal
from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.models.unified_cached import start, step
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from tests.reference import numpy_perceiver as reference
from tests.support import STREAMED, GivenQueries, assert_close, parameters_of

B, M, O, C, T, S = 2, 13, 7, 5, 3, 2
LAYERS = {'cross_attend': LayerConfig(num_heads=2, qk_channels=6), 'self_attend': LayerConfig(num_heads=2)}
ADAPTER = FeatureAdapterConfig(num_values=C)
DECODER = DecoderConfig(
  queries=GivenQueries(num_channels=6), num_outputs=3, cross_attend=LayerConfig(num_heads=3, qk_channels=6)
)
RANDOM = np.random.default_rng(0)
VALUES = RANDOM.standard_normal((B, M, C)).astype(np.float32)
QUERIES = RANDOM.standard_normal((B, O, 6)).astype(np.float32)
VALID = np.arange(M) < np.array([[M], [9]])
TIME = RANDOM.integers(0, T, (B, M)).astype(np.int32)
QUERY_TIME = np.sort(RANDOM.integers(0, T, (B, O)).astype(np.int32))
HEADS = {'num_cross_heads': 2, 'num_self_heads': 2}


def tokens(values, time=None, valid=None):
  time, valid = (None if array is None else jnp.asarray(array) for array in (time, valid))
  return Tokens(values=jnp.asarray(values), time=time, valid=valid)


@functools.cache
def models():
  sizes = {'num_latents': 4, 'num_latent_channels': 8, 'num_self_attends_per_block': 2}
  unified = {name: value for name, value in sizes.items() if name != 'num_latents'}
  repeated = PerceiverConfig(input_adapter=ADAPTER, num_outputs=3, num_cross_attends=3, num_blocks=3, **sizes, **LAYERS)
  latents = LearnedLatents(num_latents=S, num_timesteps=T)
  timed = UnifiedPerceiverConfig(input_adapter=ADAPTER, latents=latents, decoder=DECODER, **unified, **LAYERS)
  made = {
    'perceiver': Perceiver(repeated, rngs=nnx.Rngs(0)),
    'io': PerceiverIO(PerceiverIOConfig(input_adapter=ADAPTER, decoder=DECODER, **sizes, **LAYERS), rngs=nnx.Rngs(0)),
    'unified': UnifiedPerceiver(timed, rngs=nnx.Rngs(0)),
    'ar': ar_model('shared'),
    'ar query_norm': ar_model('query_norm'),
  }
  # Tables and heads that start small or at zero would make flat maps.
  return {name: filled(model, scale=0.15, seed=1) for name, model in made.items()}


def ar_model(key_norm):
  layer = LayerConfig(num_heads=2)
  config = PerceiverARConfig(
    input_adapter=FeatureAdapterConfig(num_values=C, num_projected_channels=8),
    num_latents=5,
    num_latent_channels=8,
    num_outputs=3,
    num_self_attends=2,
    key_norm=key_norm,
    cross_attend=layer,
    self_attend=layer,
  )
  return PerceiverAR(config, rngs=nnx.Rngs(0))


def call(path, model, inputs, **settings):
  queries = tokens(QUERIES, time=None if inputs.time is None else QUERY_TIME)
  if path in ('io', 'unified'):
    settings = {'decode_chunk_size' if key == 'decode' else key: value for key, value in settings.items()}
    return model(inputs, queries, **settings)
  return model(inputs, **settings)


def stated(path, model, monkeypatch, *, valid=None):
  """Every map that the reference makes on its way, in order."""
  seen, attention = [], reference.multi_head_attention

  def noted(*args, **kwargs):
    output, logits, weights = attention(*args, **kwargs)
    seen.append(types.SimpleNamespace(logits=logits, weights=weights))
    return output, logits, weights

  monkeypatch.setattr(reference, 'multi_head_attention', noted)
  parameters = parameters_of(model)
  if path == 'perceiver':
    reads = [(0, [0, 1]), (1, [0, 1]), (1, [0, 1])]
    reference.perceiver(parameters, VALUES, reads=reads, input_valid=valid, **HEADS)
  elif path == 'io':
    latents, _ = reference.encode(parameters, VALUES, layers=[0, 1], input_valid=valid, **HEADS)
    reference.decode(parameters, latents, QUERIES, num_heads=3, query_residual=True)
  elif path == 'unified':
    time = {'input_time': TIME, 'num_timesteps': T, 'timestep_embedding': parameters['timesteps']}
    latents, latent_time = reference.encode(parameters, VALUES, layers=[0, 1], input_valid=valid, **time, **HEADS)
    times = {'latent_time': latent_time, 'query_time': QUERY_TIME}
    reference.decode(parameters, latents, QUERIES, num_heads=3, query_residual=True, **times)
  else:
    embedded = np.asarray(model.input_adapter(tokens(VALUES)))
    norm = 'query_norm' if path == 'ar query_norm' else 'input_norm'
    exist = np.ones((B, M), bool) if valid is None else valid
    settings = {'num_latents': 5, 'layers': [0, 1], 'activation': 'gelu_tanh', 'latent_keys': norm}
    reference.perceiver_ar(parameters, embedded, exist, **settings, **HEADS)
  monkeypatch.undo()
  return seen


CASES = {
  'perceiver, dense': ('perceiver', {'remat': True}, None),
  'perceiver, streamed': ('perceiver', {'chunk_size': 4}, VALID),
  'io, dense': ('io', {}, VALID),
  'io, streamed and decoded in chunks': ('io', {'chunk_size': 4, 'decode': 3}, None),
  'unified, dense': ('unified', {}, None),
  'unified, prefix read, decoded in chunks': ('unified', {'chunk_size': 4, 'decode': 3, 'remat': True}, VALID),
  'ar, dense': ('ar', {}, VALID),
  'ar, streamed': ('ar', {'chunk_size': 4}, None),
  'ar with query_norm, streamed': ('ar query_norm', {'chunk_size': 4}, VALID),
}


@pytest.mark.parametrize('case', CASES)
def test_every_map_of_every_path_is_that_of_the_reference(case, monkeypatch):
  path, settings, valid = CASES[case]
  model = models()[path]
  # Small blocks, so that the plain call takes the triangle that a captured call does not.
  monkeypatch.setattr(block_causal, 'choose_chunk_size', lambda *_: 2)
  inputs = tokens(VALUES, time=TIME if path == 'unified' else None, valid=valid)
  run = functools.partial(call, path, model, inputs, **settings)
  plain, (output, maps) = jax.jit(lambda: (run(), capture_attention(run)()))()
  assert_close(output, plain, STREAMED)
  expected = stated(path, model, monkeypatch, valid=valid)
  reads, layers = (3, 6) if path == 'perceiver' else (1, 2)
  names = {f'encoder.cross_attention.{i}' for i in range(reads)} | {f'processor.{i}' for i in range(layers)}
  assert set(maps) == names | ({'decoder'} if path in ('io', 'unified') else set())
  assert len(expected) == len(maps)
  for (name, found), known in zip(maps.items(), expected, strict=True):
    logits, weights = np.asarray(found.logits), np.asarray(found.weights)
    if name.startswith('encoder') and path == 'ar query_norm':
      # Two sources of keys, prefix and latents, lie one behind the other, and each key exists in one of them.
      assert_close(weights_of_inputs(weights, valid), known.weights, STREAMED)
      continue
    assert_close(weights, known.weights, STREAMED)
    seen = known.weights > 0
    assert_close(np.where(seen, logits, 0), np.where(seen, known.logits, 0), STREAMED)


def weights_of_inputs(weights, valid):
  """Weights over [prefix, latents] as weights over the inputs."""
  index = reference.last_valid(np.ones((B, M), bool) if valid is None else valid, 5)
  onto = weights[..., :M].copy()
  for row in range(B):
    onto[row][..., index[row]] += weights[row][..., M:]
  return onto


@pytest.mark.parametrize('path', ['perceiver', 'io', 'unified', 'ar'])
def test_chosen_heads_and_queries_of_a_streamed_call_are_rows_of_the_whole_map(path):
  model = models()[path]
  inputs = tokens(VALUES, time=TIME if path == 'unified' else None)
  run = functools.partial(call, path, model, inputs)
  few = functools.partial(run, chunk_size=4, **({'decode': 3} if path in ('io', 'unified') else {}))
  choose = capture_attention(few, heads=[1], queries=[3, 0])
  (_, whole), (_, chosen) = jax.jit(lambda: (capture_attention(run)(), choose()))()
  assert set(chosen) == set(whole)
  for name, one in chosen.items():
    assert_close(one, jax.tree.map(lambda array: array[:, 1:2][:, :, [3, 0]], whole[name]), STREAMED)


def test_a_chosen_map_of_a_long_input_costs_no_more_than_itself():
  """What the compiler sets aside for two latents of one head: one map, not the 32 of the whole read."""
  config = PerceiverConfig.tiny(pixel_adapter((256, 256, 1), num_bands=3), num_outputs=3)
  model = Perceiver(dataclasses.replace(config, cross_attend=LayerConfig(num_heads=4, qk_channels=8)), rngs=nnx.Rngs(0))
  images = jnp.zeros((1, 256, 256, 1), jnp.uint8)

  def temporaries(**choice):
    run = capture_attention(
      lambda x: model(pixel_tokens(x), chunk_size=512), names=['encoder.cross_attention.0'], **choice
    )
    return jax.jit(run).lower(images).compile().memory_analysis().temp_size_in_bytes

  assert 8 * temporaries(heads=[0], queries=[1, 2]) < temporaries()


def test_names_match_component_by_component():
  model = models()['perceiver']
  run = capture_attention(model, names=['encoder.cross_attention.1'])
  _, maps = jax.jit(run)(tokens(VALUES))
  assert set(maps) == {'encoder.cross_attention.1'}
  with pytest.raises(ValueError, match="no attention named 'process'"):
    capture_attention(model, names=['process'])(tokens(VALUES))


def test_a_second_decoding_counts_on():
  model = models()['io']

  def twice(inputs, queries):
    latents = model.encode(inputs)
    return [model.decode(latents, queries) for _ in range(3)]

  _, maps = jax.jit(capture_attention(twice, names=['decoder']))(tokens(VALUES), tokens(QUERIES))
  assert list(maps) == ['decoder', 'decoder#1', 'decoder#2']


@pytest.mark.parametrize('key_norm', ['ar', 'ar query_norm'])
def test_a_cached_step_looks_where_the_whole_call_looks(key_norm):
  """Five tokens at once and one more through the cache, against six at once: the newest row of every map."""
  model, inputs = models()[key_norm], tokens(VALUES[:, :6])
  five, newest = tokens(VALUES[:, :5]), tokens(VALUES[:, 5:6])
  window = LatentWindow(context_length=6, num_latents=5, num_start_latents=4)

  @jax.jit
  def all_maps():
    (cache, _), started = capture_attention(lambda: model.start(five, window, room=1))()
    _, stepped = capture_attention(lambda: model.step(cache, newest))()
    _, at_once = capture_attention(lambda: model(five, num_latents=4))()
    _, whole = capture_attention(lambda: model(inputs, num_latents=5))()
    return started, stepped, at_once, whole

  started, stepped, at_once, whole = all_maps()
  assert list(started) == list(stepped) == list(whole)
  # With query_norm the keys of a call that is not cached lie by source.
  for name in whole if key_norm == 'ar' else ['processor.0', 'processor.1']:
    assert_close(started[name].weights, at_once[name].weights)
    assert_close(stepped[name].weights, whole[name].weights[:, :, -1:])


def test_a_cached_timestep_of_the_unified_model_names_its_processor_maps():
  model, time = models()['unified'], np.repeat(np.arange(T, dtype=np.int32), 4)
  values, times = VALUES[:, : 4 * T], np.tile(time, (B, 1))

  @jax.jit
  def all_maps():
    known = tokens(values[:, :8], time=times[:, :8])
    cache, _ = start(model, known, num_timesteps=T - 1, max_timesteps=T)
    _, stepped = capture_attention(lambda: step(model, cache, tokens(values[:, 8:])))()
    _, whole = capture_attention(lambda: model.encode(tokens(values, time=times)))()
    return stepped, whole

  stepped, whole = all_maps()
  assert list(stepped) == ['processor.0', 'processor.1']
  for name, one in stepped.items():
    assert_close(one.weights, whole[name].weights[:, :, -S:], STREAMED)
