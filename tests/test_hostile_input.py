"""What users hand over by mistake is converted, refused in a sentence, or NaN in a compiled program."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib import (
  PerceiverAR,
  PerceiverARConfig,
  PerceiverIO,
  PerceiverIOConfig,
  UnifiedPerceiver,
  UnifiedPerceiverConfig,
)
from perceiver_lib.adapters import (
  EmbeddingAdapterConfig,
  FactoredPositions,
  FeatureAdapterConfig,
  LearnedPositions,
)
from perceiver_lib.attention.attend import attend
from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.generation.stream import Sampler, generate
from perceiver_lib.generation.timesteps import TimestepWindow
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.modalities.text_context import ContextAdapterConfig
from perceiver_lib.models.convolution import ConvolutionConfig
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import InputLatents, LearnedLatents
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.positions import FourierFeatures, Rotary, SinusoidalPositions
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.tokens import Tokens
from perceiver_lib.training import metrics
from perceiver_lib.training.fit import fit
from perceiver_lib.training.losses import cross_entropy
from tests.support import as_users_call, assert_close

M, T = 6, 3
ADAPTER = EmbeddingAdapterConfig(
  num_embeddings=11, num_channels=8, position=LearnedPositions(shape=(M,), num_channels=8)
)
DECODER = DecoderConfig(queries=LearnedQueries(num_queries=2, num_channels=8), num_outputs=3)
IDS = np.array([[1, 2, 3, 4, 5, 10], [9, 8, 7, 6, 0, 1]])
PLACES, TIMES = np.arange(M)[None, :, None], np.array([[0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2]])
LAYER = LayerConfig(num_heads=2)


AR = dataclasses.replace(
  PerceiverARConfig.tiny(11), input_adapter=ADAPTER, num_latents=4, num_latent_channels=8, num_outputs=11
)
MODELS = {
  'perceiver': (Perceiver, PerceiverConfig.tiny(ADAPTER, 3)),
  'io': (PerceiverIO, PerceiverIOConfig.tiny(ADAPTER, DECODER)),
  'ar': (PerceiverAR, AR),
  'unified': (UnifiedPerceiver, UnifiedPerceiverConfig.tiny(ADAPTER, DECODER, T)),
  'transformer': (
    Transformer,
    TransformerConfig(input_adapter=ADAPTER, num_layers=1, num_outputs=3, self_attend=LAYER),
  ),
}


@functools.cache
def made(name):
  return filled(abstract(*MODELS[name]), scale=0.3)


def outputs(name, tokens, chunk_size=None, model=None):
  """One operation after another: numbers are known."""
  model, b = model or made(name), tokens.values.shape[0]
  chunks = {} if name == 'transformer' else {'chunk_size': chunk_size}
  if name != 'unified':
    tokens = dataclasses.replace(tokens, time=None)
    result = model(tokens, **chunks)
    return result.values if name == 'ar' else result
  queries = Tokens(values=np.tile([0, 1], (b, 1)), time=np.tile([0, T - 1], (b, 1)))
  return model(tokens, queries, **chunks)


FIELDS = {'values': IDS, 'position': PLACES, 'time': TIMES, 'valid': np.arange(M) < np.array([[M], [4]])}


@pytest.mark.parametrize('name', MODELS)
def test_numpy_arrays_are_as_good_as_those_of_jax(name):
  """As constants of a program that is only traced, and as jax.device_get leaves tokens."""
  model = made(name)
  for batch_size, chunk_size in ((1, None), (2, None), (1, 4), (2, 4)):
    tokens = Tokens(**{field: array if field == 'position' else array[:batch_size] for field, array in FIELDS.items()})
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tokens))
    on_host = jax.tree.map(np.asarray, tokens)
    shapes = jax.eval_shape(lambda on_host=on_host, size=chunk_size: outputs(name, on_host, size, model))
    assert shapes.shape[0] == batch_size


def test_integers_that_jax_would_cut_are_refused():
  with pytest.raises(ValueError, match=r'Tokens.values must fit into int32; got 3 to 4294967299'):
    Tokens(values=np.array([[3, 2**32 + 3]]))


def token(values=0, position=0) -> Tokens:
  return Tokens(values=np.array(values)[None, None], position=np.reshape(position, (1, 1, -1)))


CELLS = [(1, 2), (0, 3), (2, 0), (0, -1)]
GRID = LearnedPositions(shape=(2, 3), num_channels=4)
FACTORED = FactoredPositions(shape=(2, 3), num_channels=4)
TABLES = {
  'embeddings': (ADAPTER, [token(id) for id in (10, 11, -1, -100)]),
  'positions': (ADAPTER, [token(position=place) for place in (M - 1, M, -1)]),
  'grid': (FeatureAdapterConfig(num_values=1, position=GRID), [token([0], cell) for cell in CELLS]),
  'factored': (
    EmbeddingAdapterConfig(num_embeddings=1, num_channels=4, position=FACTORED),
    [token(0, cell) for cell in CELLS],
  ),
  'queries': (LearnedQueries(num_queries=5, num_channels=4), [token(id) for id in (4, 5, -1)]),
  'context': (
    ContextAdapterConfig(num_ids=1, num_embeddings=7, num_id_channels=2, num_channels=4),
    [token([id], 0.0) for id in (6, 7, -1)],
  ),
}


@pytest.mark.parametrize('table', TABLES)
def test_a_table_refuses_what_lies_outside_or_says_nan_in_a_compiled_program(table):
  config, (inside, *outside) = TABLES[table]
  adapter = config.build(nnx.Rngs(0))
  traced = jax.jit(adapter)
  np.testing.assert_array_equal(np.isfinite(traced(inside)), np.isfinite(adapter(inside)))
  assert np.isfinite(adapter(inside)).all()
  for tokens in outside:
    assert np.isnan(traced(tokens)).any()
    with pytest.raises(ValueError, match=r'There are .*; got ids from'):
      adapter(tokens)


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_padding_may_lie_outside_of_all_tables(chunk_size):
  """Also where all examples share the positions; what is no padding is refused, chunk by chunk as well."""
  valid = np.broadcast_to(np.arange(M + 2) < M, (2, M + 2))
  longer = Tokens(values=np.pad(IDS, ((0, 0), (0, 2)), constant_values=-100), position=np.arange(M + 2)[None, :, None])
  padded = dataclasses.replace(longer, valid=jnp.asarray(valid))

  @nnx.jit
  def value_and_gradients(model, tokens):
    def loss(model):
      output = outputs('io', tokens, chunk_size, model)
      return output.sum(), output

    return nnx.value_and_grad(loss, has_aux=True)(model)

  within = dataclasses.replace(padded, values=jnp.maximum(padded.values, 0), position=padded.position % M)
  actual, expected = (value_and_gradients(made('io'), tokens) for tokens in (padded, within))
  assert_close(actual, expected, 0)
  with pytest.raises(ValueError, match='There are 11 embeddings; got ids from -100 to 10'):
    outputs('io', longer, chunk_size)


@pytest.mark.parametrize(('chunk_size', 'window'), [(None, None), (None, 1), (4, 1)])
def test_nan_that_no_timestep_may_read_reaches_no_gradient(chunk_size, window):
  adapter = FeatureAdapterConfig(num_values=2, num_projected_channels=8)
  config = UnifiedPerceiverConfig.tiny(adapter, DECODER, T)
  latents = dataclasses.replace(config.latents, encoder_window=window)
  model = filled(abstract(UnifiedPerceiver, dataclasses.replace(config, latents=latents)), scale=0.3)
  time = np.array([[0, 1, 2, T, -1 if window else T, 2], [T + 1, 1, 2, 0, 2, -5 if window else T]])
  hidden = (time >= T) | (time < 0)
  values = np.where(hidden[..., None], np.nan, np.random.default_rng(0).normal(size=(2, M, 2)))

  def loss(model, values):
    tokens = Tokens(values=values, time=jnp.asarray(time, jnp.int32))
    return outputs('unified', tokens, chunk_size, model).sum()

  both = values, np.where(hidden[..., None], 0, values)
  gradients = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1)))
  seen, clean = (gradients(model, jnp.asarray(array, jnp.float32)) for array in both)
  assert_close(seen, clean)


def test_nan_that_no_query_of_an_attention_may_read_reaches_no_gradient():
  q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 3)).astype(np.float32)
  time = jnp.array([[0, 1, 9, 1]], jnp.int32)
  k[:, :, 2], v[:, :, 2] = np.nan, np.inf

  def loss(q, k, v):
    return attend(q, k, v, query_time=jnp.array([[0, 1, 1, 2]], jnp.int32), key_time=time).sum()

  assert all(np.isfinite(leaf).all() for leaf in jax.grad(loss, argnums=(0, 1, 2))(q, k, v))


@pytest.mark.parametrize('name', ['perceiver', 'io', 'unified'])
def test_an_example_without_a_token_is_refused(name):
  valid = np.arange(2)[:, None] > np.zeros(M)
  tokens = Tokens(values=IDS, position=PLACES, time=TIMES, valid=valid)
  with pytest.raises(ValueError, match='at least one valid token of its 6; example 0 of 2 has none'):
    outputs(name, tokens)
  with pytest.raises(ValueError, match='at least one example and one token'):
    outputs(name, Tokens(values=IDS[:, :0], position=PLACES[:, :0], time=TIMES[:, :0]))


NAN, COUNT, SHARE = float('nan'), (0, -1, 2.5, True, float('nan')), (-0.1, 1.5, float('nan'), float('inf'))
TINY = PerceiverConfig.tiny(ADAPTER, 3)
SETTINGS = [
  (LAYER, {'num_heads': COUNT, 'qk_channels': COUNT, 'v_channels': COUNT, 'widening_factor': COUNT, 'dropout': SHARE}),
  (
    TINY,
    dict.fromkeys(['num_latents', 'num_latent_channels', 'num_outputs', 'num_cross_attends', 'num_blocks'], COUNT),
  ),
  (PerceiverIOConfig.tiny(ADAPTER, DECODER), {'num_latents': COUNT, 'num_self_attends_per_block': COUNT}),
  (
    PerceiverARConfig.tiny(),
    {'num_latents': COUNT, 'num_self_attends': (-1, 0.5, NAN), 'num_rotary_layers': (-1, 0.5, NAN)},
  ),
  (UnifiedPerceiverConfig.tiny(ADAPTER, DECODER, T), {'num_latent_channels': COUNT, 'num_blocks': COUNT}),
  (LearnedLatents(num_latents=2), {'num_latents': COUNT, 'num_timesteps': COUNT, 'encoder_window': COUNT}),
  (InputLatents(num_latents=2), {'num_latents': COUNT}),
  (TransformerConfig.of_bytes(num_channels=8, num_layers=1, num_heads=2), {'num_layers': COUNT, 'num_outputs': COUNT}),
  (ConvolutionConfig(image_shape=(8, 8, 3)), {'num_channels': COUNT, 'image_shape': ((8, 0, 3), (8, 8, NAN))}),
  (DECODER, {'num_outputs': COUNT}),
  (LearnedQueries(num_queries=2, num_channels=8), {'num_queries': COUNT, 'num_channels': COUNT}),
  (ADAPTER, {'num_embeddings': COUNT, 'num_channels': COUNT}),
  (FeatureAdapterConfig(num_values=2), {'num_values': COUNT, 'scale': (NAN, float('inf')), 'shift': (NAN,)}),
  (LearnedPositions(shape=(2,), num_channels=2), {'shape': ((), (2, 0), (-1,)), 'num_channels': COUNT}),
  (FactoredPositions(shape=(2,), num_channels=2), {'shape': ((), (2, 0), (-1,)), 'num_channels': COUNT}),
  (FourierFeatures(num_bands=2, max_resolution=(4,)), {'num_bands': COUNT, 'max_resolution': ((), (0,), (NAN,))}),
  (SinusoidalPositions(num_channels=4), {'num_channels': (0, 4.5, NAN), 'base': (0, NAN)}),
  (Rotary(), {'base': (0, -1, NAN), 'fraction': (NAN,), 'axis': (-1, 0.5)}),
  (ModalityAdaptersConfig(modalities=(('a', ADAPTER),), num_channels=9), {'num_channels': COUNT}),
  (Sampler(), {'temperature': (-1, NAN, float('inf')), 'top_p': (0, -1, 1.5, NAN)}),
  (TimestepWindow(max_timesteps=2, num_kept=1), {'max_timesteps': COUNT, 'num_kept': COUNT}),
  (LatentWindow(context_length=4, num_latents=2, num_start_latents=1), {'context_length': COUNT, 'num_latents': COUNT}),
]


@pytest.mark.parametrize(('config', 'wrong'), SETTINGS, ids=lambda value: type(value).__name__)
def test_settings_out_of_range_are_refused_by_name(config, wrong):
  with as_users_call():
    for name, values in wrong.items():
      for value in values:
        with pytest.raises(ValueError, match=rf'^{name} must be'):
          dataclasses.replace(config, **{name: value})


def test_modalities_of_equal_names_or_unequal_batches_are_refused():
  with pytest.raises(ValueError, match=r"all different; got \['a', 'a'\]"):
    ModalityAdaptersConfig(modalities=(('a', ADAPTER), ('a', ADAPTER)), num_channels=9)
  adapters = ModalityAdaptersConfig(modalities=(('a', ADAPTER), ('b', ADAPTER)), num_channels=9)
  model = filled(abstract(Perceiver, PerceiverConfig.tiny(adapters, 3)), scale=0.3)
  tokens = Tokens(values=IDS, position=PLACES)
  with pytest.raises(ValueError, match=r"same number of examples; they have \{'a': 2, 'b': 1\}"):
    model({'a': tokens, 'b': dataclasses.replace(tokens, values=tokens.values[:1])})


def test_nan_is_no_answer():
  logits = jnp.where(jnp.arange(4)[:, None] == 2, jnp.nan, jnp.eye(4, 3))
  assert np.isnan(metrics.accuracy(logits, jnp.zeros(4, jnp.int32)))
  assert metrics.accuracy(logits, jnp.zeros(4, jnp.int32), valid=jnp.arange(4) == 0) == 1
  window = LatentWindow(context_length=9, num_latents=4, num_start_latents=2)
  with pytest.raises(FloatingPointError, match='logits of new token 2 of row 0 are NaN'):
    # The second new token lies behind the last learned position.
    generate(made('ar'), IDS[:1, :5], window=window, num_tokens=3)
  with pytest.raises(ValueError, match='Prompts must be integer ids'), as_users_call():
    generate(made('ar'), IDS + 0.5, window=window, num_tokens=1)
  with pytest.raises(ValueError, match='allowed must have a column for each of 11 ids'):
    generate(made('ar'), IDS, window=window, num_tokens=1, allowed=np.ones((1, 7), bool))


@pytest.mark.parametrize(
  ('batches', 'sentence'),
  [
    (iter([{}]), 'batches must be a function from a step to an iterator; got a list_iterator'),
    (lambda step: [{}], 'batches must return an iterator of batches, .*; got a list'),
    (lambda step: iter([(IDS, IDS)]), 'A batch must be a dict of arrays by name; batch 0 is a tuple'),
  ],
)
def test_batches_of_another_kind_are_refused(batches, sentence):
  with as_users_call(), pytest.raises(ValueError, match=sentence):
    fit(made('io'), None, batches, optimizer=None, num_steps=1, seed=0)


def test_one_width_all_through_in_64_bits():
  """The float64 model, its chunks and its gradients agree far beyond float32."""
  with jax.enable_x64(True):
    adapter = FeatureAdapterConfig(num_values=3, position=FourierFeatures(num_bands=2, max_resolution=(M,)))
    config = UnifiedPerceiverConfig.tiny(adapter, DECODER, T)
    model = filled(abstract(UnifiedPerceiver, config), scale=0.3)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float64)}
    values, position = np.random.default_rng(0).normal(size=(2, 2, M, 3))
    tokens = Tokens(values=values, position=position[:, :, :1], time=TIMES.astype(np.int32))

    def loss(model, chunk_size):
      logits = outputs('unified', tokens, chunk_size, model)
      return cross_entropy(logits, jnp.array([[0, 1], [2, 0]]))

    both = [nnx.jit(nnx.value_and_grad(functools.partial(loss, chunk_size=size)))(model) for size in (None, 4)]
    assert {leaf.dtype for leaf in jax.tree.leaves(both)} == {jnp.dtype(jnp.float64)}
    assert_close(both[1], both[0], 1e-13)
