"""The unified model: its maths, its special cases, and that no output knows the future."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig
from perceiver_lib.attention import block_causal
from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig, IdentityDecoderConfig
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.last_inputs import latest
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.unified import (
  InputLatents,
  LearnedLatents,
  UnifiedPerceiver,
  UnifiedPerceiverConfig,
)
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.positions import Rotary
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from tests.reference import make_golden
from tests.support import (
  GOLDEN,
  ROUNDING,
  STREAMED,
  GivenQueries,
  assert_close,
  compiled,
  renamed,
  set_parameters,
  value_and_gradients,
)

pytestmark = pytest.mark.gpu

BATCH, STEPS, LATENTS, INPUTS, QUERIES = 2, 5, 2, 17, 7
CHANNELS, OUTPUTS, VALUES = 14, 3, 3
DECODER = DecoderConfig(queries=GivenQueries(num_channels=6), num_outputs=OUTPUTS)
CONFIG = UnifiedPerceiverConfig(
  input_adapter=FeatureAdapterConfig(num_values=VALUES, num_projected_channels=11),
  latents=LearnedLatents(num_latents=LATENTS, num_timesteps=STEPS),
  num_latent_channels=CHANNELS,
  num_self_attends_per_block=2,
  self_attend=LayerConfig(num_heads=2),
  decoder=DECODER,
)
NEVER = np.iinfo(np.int32).max


def model_of(config=CONFIG, seed=3):
  return filled(UnifiedPerceiver(config, rngs=nnx.Rngs(0)), scale=0.15, seed=seed)


def inputs_and_queries(times=(SOURCE_TIME, 0, 1, 3, 4), seed=1):
  """Any order, padding, an empty timestep 2, and the source."""
  random = np.random.default_rng(seed)
  inputs = Tokens(
    values=jnp.asarray(random.normal(size=(BATCH, INPUTS, VALUES)), jnp.float32),
    time=jnp.asarray(random.choice(times, (BATCH, INPUTS)), jnp.int32),
    valid=jnp.asarray(random.random((BATCH, INPUTS)) > 0.2),
  )
  queries = Tokens(
    values=jnp.asarray(random.normal(size=(BATCH, QUERIES, 6)), jnp.float32),
    time=jnp.asarray(random.integers(0, STEPS, (BATCH, QUERIES)), jnp.int32),
  )
  return inputs, queries


def value_and_gradient(function, model, values):
  """The output, and all gradients as one vector, in the order of the parameters' names."""
  output, (of_model, of_values) = value_and_gradients(function, model, values)
  by_name = {'.'.join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(of_model))}
  return output, jnp.concatenate([jnp.ravel(by_name[name]) for name in sorted(by_name)] + [jnp.ravel(of_values)])


def with_weights_of(source, target):
  """The same parameter paths, or this fails."""
  ours, theirs = (dict(nnx.to_flat_state(nnx.state(m, nnx.Param))) for m in (target, source))
  assert set(ours) == set(theirs)
  nnx.update(target, nnx.state(source, nnx.Param))
  return target


def test_equals_the_golden_arrays():
  arrays, parameters, outputs = make_golden.load('unified')
  steps, width = arrays['timestep_embedding'].shape
  layer = LayerConfig(num_heads=2, qk_channels=make_golden.QK_CHANNELS, v_channels=make_golden.V_CHANNELS)
  queries = GivenQueries(num_channels=arrays['queries'].shape[-1])
  config = UnifiedPerceiverConfig(
    input_adapter=FeatureAdapterConfig(num_values=arrays['inputs'].shape[-1]),
    latents=LearnedLatents(num_latents=make_golden.LATENTS, num_timesteps=steps),
    num_latent_channels=width,
    num_self_attends_per_block=2,
    cross_attend=layer,
    self_attend=layer,
    decoder=DecoderConfig(queries=queries, num_outputs=make_golden.OUTPUTS, cross_attend=layer),
  )
  config = dataclasses.replace(config, cross_attend=dataclasses.replace(layer, num_heads=1))
  model = abstract(UnifiedPerceiver, config)
  set_parameters(model, renamed(parameters) | {'timesteps': arrays['timestep_embedding']})
  inputs = Tokens(
    values=jnp.asarray(arrays['inputs']), time=jnp.asarray(arrays['time']), valid=jnp.asarray(arrays['valid'])
  )
  queries = Tokens(values=jnp.asarray(arrays['queries']), time=jnp.asarray(arrays['query_time']))
  for chunk_size in (None, 4):

    @jax.jit
    def run(model, chunk_size=chunk_size):
      latents = model.encode(inputs, chunk_size=chunk_size)
      return latents, model.decode(latents, queries)

    latents, decoded = run(model)
    assert_close(latents.values, outputs['latents'], GOLDEN)
    assert np.array_equal(latents.time, outputs['latent_time'])
    assert_close(decoded, outputs['outputs'], GOLDEN)


@pytest.mark.parametrize(('chunk_size', 'timed'), [(None, False), (None, True), (4, True)])
def test_one_timestep_without_a_table_is_perceiver_io(chunk_size, timed):
  shared = {'num_latent_channels': CHANNELS, 'num_blocks': 2, 'num_self_attends_per_block': 2}
  shared |= {'input_adapter': CONFIG.input_adapter, 'self_attend': CONFIG.self_attend, 'decoder': DECODER}
  io = filled(PerceiverIO(PerceiverIOConfig(num_latents=LATENTS, **shared), rngs=nnx.Rngs(0)), scale=0.15, seed=3)
  latents = LearnedLatents(num_latents=LATENTS, timestep_table=False)
  unified = with_weights_of(io, UnifiedPerceiver(UnifiedPerceiverConfig(latents=latents, **shared), rngs=nnx.Rngs(1)))
  inputs, queries = inputs_and_queries(times=(0,))

  def outputs(model, values, timed, chunk_size):
    tokens = dataclasses.replace(inputs, values=values, time=inputs.time if timed else None)
    asked = dataclasses.replace(queries, time=jnp.zeros_like(queries.time) if timed else None)
    return model(tokens, asked, chunk_size=chunk_size)

  expected = value_and_gradient(functools.partial(outputs, timed=False, chunk_size=None), io, inputs.values)
  as_unified = functools.partial(outputs, timed=timed, chunk_size=chunk_size)
  tolerance = ROUNDING if chunk_size is None else STREAMED
  assert_close(value_and_gradient(as_unified, unified, inputs.values), expected, tolerance)


@pytest.mark.parametrize(
  ('projection', 'key_norm', 'chunk_size'), [('linear', 'shared', None), ('none', 'query_norm', 4)]
)
def test_latents_on_the_last_inputs_with_an_identity_decoder_are_perceiver_ar(projection, key_norm, chunk_size):
  layer = LayerConfig(num_heads=2, widening_factor=2, activation='squared_relu', rotary=Rotary(fraction=0.5))
  krasserms = key_norm == 'query_norm'
  shared = {
    'num_latent_channels': CHANNELS,
    'cross_attend': dataclasses.replace(layer, biases='output' if krasserms else 'all'),
    'self_attend': dataclasses.replace(layer, biases='none' if krasserms else 'all'),
    'num_rotary_layers': 1 if krasserms else None,
  }
  shared['input_adapter'] = FeatureAdapterConfig(num_values=VALUES, num_projected_channels=CHANNELS)
  ar = PerceiverARConfig(
    num_latents=5,
    num_outputs=OUTPUTS,
    num_self_attends=2,
    latent_projection=projection,
    key_norm=key_norm,
    output_norm=not krasserms,
    **shared,
  )
  ar = filled(PerceiverAR(ar, rngs=nnx.Rngs(0)), scale=0.15, seed=3)
  config = UnifiedPerceiverConfig(
    latents=InputLatents(num_latents=5, projection=projection, key_norm=key_norm),
    num_self_attends_per_block=2,
    decoder=IdentityDecoderConfig(num_outputs=OUTPUTS, output_norm=not krasserms),
    **shared,
  )
  unified = with_weights_of(ar, UnifiedPerceiver(config, rngs=nnx.Rngs(1)))
  values = inputs_and_queries()[0].values
  index = jnp.arange(INPUTS)[None]
  # Padding on the left, and on the right with fewer valid inputs than latents.
  valid = jnp.concatenate([index >= 3, index < 4])
  position = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)[..., None]
  time = jnp.broadcast_to(index, (BATCH, INPUTS))

  def outputs(model, values, **fields):
    output = model(Tokens(values=values, valid=valid, position=position, **fields), chunk_size=chunk_size)
    return jnp.where(output.valid[..., None], output.values, 0)

  expected = value_and_gradient(outputs, ar, values)
  assert_close(value_and_gradient(functools.partial(outputs, time=time), unified, values), expected)


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_no_output_depends_on_later_or_invalid_inputs_and_every_other_dependence_is_there(chunk_size):
  model = model_of()
  inputs, queries = inputs_and_queries()

  def outputs(values):
    return model(dataclasses.replace(inputs, values=values), queries, chunk_size=chunk_size)

  jacobian = np.asarray(jax.jit(jax.jacrev(outputs))(inputs.values))
  dependence = np.abs(jacobian).sum(axis=(2, 5))
  assert np.all(dependence[0, :, 1] == 0) and np.all(dependence[1, :, 0] == 0)
  for row in range(BATCH):
    known = np.asarray((inputs.time[row][None] <= queries.time[row][:, None]) & inputs.valid[row][None])
    assert np.array_equal(dependence[row, :, row] > 0, known)
    assert known.any() and not known.all()


def leak(model, process) -> float:
  """The largest derivative of an output in an input that it must not know."""
  inputs, queries = inputs_and_queries()

  def outputs(values):
    latents = process(model, dataclasses.replace(inputs, values=values))
    return model.decode(latents, queries)

  jacobian = jnp.abs(jax.jit(jax.jacrev(outputs))(inputs.values)).sum(axis=(2, 5))
  own = jnp.stack([jacobian[row, :, row] for row in range(BATCH)])
  unknown = (inputs.time[:, None] > queries.time[:, :, None]) | ~inputs.valid[:, None]
  return float(jnp.max(jnp.where(unknown, own, 0.0)))


def test_the_published_sketch_leaks_and_this_model_does_not():
  model = model_of()

  def as_sketched(model, inputs):
    """Encoder and decoder by the rule, latents unmasked: what the sketch ran for lack of memory."""
    latents = model.read(inputs)
    unmasked = dataclasses.replace(latents, time=None)
    processed = model.blocks[0](unmasked, num_latents_per_timestep=LATENTS)
    return dataclasses.replace(latents, values=processed.values)

  assert leak(model, lambda model, inputs: model.encode(inputs)) == 0.0
  assert leak(model, as_sketched) > 1e-3


@pytest.mark.parametrize(('garbage', 'chunk_size'), [(np.nan, None), (np.nan, 4), (3e38, 4)])
def test_garbage_in_later_and_invalid_inputs_leaves_earlier_outputs_bit_identical(monkeypatch, garbage, chunk_size):
  if chunk_size is not None:
    monkeypatch.setattr(block_causal, 'choose_chunk_size', lambda rows, keys: 1)
    monkeypatch.setattr(block_causal, 'BLOCK_ROWS', 4)
  model = model_of()
  inputs, queries = inputs_and_queries()
  spoil = np.asarray((inputs.time > 1) | ~inputs.valid)
  run = jax.jit(lambda tokens: model(tokens, queries, chunk_size=chunk_size))
  clean = np.asarray(run(inputs))
  bad = np.asarray(run(dataclasses.replace(inputs, values=jnp.where(spoil[..., None], garbage, inputs.values))))
  early = np.asarray(queries.time <= 1)
  assert np.array_equal(bad[early], clean[early]) and np.all(np.isfinite(clean))
  assert not np.array_equal(bad[~early], clean[~early])


def test_streamed_and_block_causal_paths_equal_the_dense_one_in_outputs_and_gradients(monkeypatch):
  inputs, queries = inputs_and_queries()

  def outputs(model, values, **settings):
    return model(dataclasses.replace(inputs, values=values), queries, **settings)

  dense = value_and_gradient(outputs, model_of(), inputs.values)
  monkeypatch.setattr(block_causal, 'choose_chunk_size', lambda rows, keys: 1)
  monkeypatch.setattr(block_causal, 'BLOCK_ROWS', 4)
  small = functools.partial(outputs, chunk_size=4, decode_chunk_size=3, remat=True)
  assert_close(value_and_gradient(small, model_of(), inputs.values), dense, 2 * ROUNDING)


def test_order_and_padding_of_inputs_do_not_matter():
  model, random = model_of(), np.random.default_rng(5)
  inputs, queries = inputs_and_queries()
  run = jax.jit(lambda inputs, chunk_size: model(inputs, queries, chunk_size=chunk_size), static_argnums=1)
  expected = run(inputs, None)
  order = random.permutation(INPUTS)
  shuffled = jax.tree.map(lambda x: x[:, order], inputs)
  padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:, :6])], axis=1), shuffled)
  for chunk_size in (None, 4):
    assert_close(run(padded, chunk_size), expected)


def test_fewer_timesteps_are_a_prefix_of_more():
  model = model_of()
  inputs, _ = inputs_and_queries()
  long, short = (jax.jit(functools.partial(model.encode, num_timesteps=t))(inputs) for t in (STEPS, 3))
  assert_close(short.values, long.values[:, : 3 * LATENTS])
  assert short.time[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_encoder_window_reads_the_last_timesteps_and_the_source_only():
  learned = dataclasses.replace(CONFIG.latents, encoder_window=1)
  config = dataclasses.replace(CONFIG, latents=learned)
  inputs, _ = inputs_and_queries()

  def maps(chunk_size):
    encode = capture_attention(model_of(config).encode, names=['encoder'])
    return compiled(encode, inputs, chunk_size=chunk_size)[1]['encoder.cross_attention.0'].weights

  step = np.arange(STEPS).repeat(LATENTS)[None, :, None]
  time, valid = np.asarray(inputs.time)[:, None], np.asarray(inputs.valid)[:, None]
  seen = ((time == step) | (time == SOURCE_TIME)) & valid
  for chunk_size in (None, 4):
    assert np.array_equal(np.asarray(maps(chunk_size))[:, 0] > 0, seen)


def test_modalities_share_timesteps_and_one_softmax():
  letters = EmbeddingAdapterConfig(num_embeddings=5, num_channels=7)
  pixels = FeatureAdapterConfig(num_values=VALUES, num_projected_channels=7)
  adapters = ModalityAdaptersConfig(modalities=(('letters', letters), ('pixels', pixels)), num_channels=11)
  model = model_of(dataclasses.replace(CONFIG, input_adapter=adapters))
  inputs, queries = inputs_and_queries()
  letters, letter_time = jnp.ones((BATCH, 3), jnp.int32), jnp.full((BATCH, 3), SOURCE_TIME, jnp.int32)
  for chunk_size in (None, 4):

    def outputs(values, letters, chunk_size=chunk_size):
      source = Tokens(values=letters, time=letter_time)
      tokens = {'letters': source, 'pixels': dataclasses.replace(inputs, values=values)}
      return model(tokens, queries, chunk_size=chunk_size)

    jacobian = np.asarray(jax.jit(jax.jacrev(outputs))(inputs.values, letters))
    known = np.asarray((inputs.time[0][None] <= queries.time[0][:, None]) & inputs.valid[0][None])
    assert np.array_equal(np.abs(jacobian[0, :, :, 0]).sum(axis=(1, 3)) > 0, known)
    first, second = (np.asarray(jax.jit(outputs)(inputs.values, letters + other)) for other in (0, 1))
    assert np.all(first != second)


def test_latest_takes_valid_inputs_by_time_and_never_the_source():
  tokens = Tokens(
    values=jnp.arange(7)[None],
    time=jnp.array([[4, SOURCE_TIME, 1, 3, 3, 9, 0]], jnp.int32),
    valid=jnp.array([[True, True, True, True, True, False, True]]),
  )
  latents, is_latent = latest(tokens, 4)
  assert latents.values.tolist() == [[2, 3, 4, 0]] and latents.time.tolist() == [[1, 3, 3, 4]]
  assert is_latent.tolist() == [[True, False, True, True, True, False, False]]
  latents, is_latent = latest(tokens, 6)
  assert latents.valid.tolist() == [[False, True, True, True, True, True]] and int(is_latent.sum()) == 5


def test_refuses_mixtures_of_timed_and_timeless_tokens():
  model = model_of()
  inputs, queries = inputs_and_queries()
  with pytest.raises(ValueError, match='5 timesteps need inputs with a time'):
    jax.eval_shape(model, dataclasses.replace(inputs, time=None), queries)
  with pytest.raises(ValueError, match='both carry time, or neither'):
    jax.eval_shape(model, inputs, dataclasses.replace(queries, time=None))
  one_step = functools.partial(model, num_timesteps=1)
  with pytest.raises(ValueError, match='both carry time, or neither'):
    jax.eval_shape(one_step, dataclasses.replace(inputs, time=None), queries)
  both = (('a', CONFIG.input_adapter), ('b', CONFIG.input_adapter))
  adapters = ModalityAdaptersConfig(modalities=both, num_channels=13)
  model = model_of(dataclasses.replace(CONFIG, input_adapter=adapters))
  with pytest.raises(ValueError, match='All sources must carry time, or none may; 1 of 2 do'):
    jax.eval_shape(model, {'a': inputs, 'b': dataclasses.replace(inputs, time=None)}, queries)


def test_refuses_what_it_cannot_do():
  inputs, queries = inputs_and_queries()
  with pytest.raises(ValueError, match='a table of 5 timesteps; got 6'):
    model_of().encode(inputs, num_timesteps=6)
  with pytest.raises(ValueError, match='decodes queries, each with its time; got none'):
    jax.eval_shape(model_of(), inputs)
  with pytest.raises(ValueError, match='read cannot be rotary'):
    dataclasses.replace(CONFIG, cross_attend=LayerConfig(num_heads=1, rotary=Rotary()))
  with pytest.raises(ValueError, match='inputs as wide as the latents, 14 channels; got 11'):
    dataclasses.replace(CONFIG, latents=InputLatents(num_latents=3, projection='none'))
  with pytest.raises(ValueError, match='encoder_window must be whole, 1 or more; got 0'):
    LearnedLatents(num_latents=2, num_timesteps=3, encoder_window=0)
  model = model_of(dataclasses.replace(CONFIG, decoder=IdentityDecoderConfig(num_outputs=OUTPUTS)))
  with pytest.raises(ValueError, match='identity decoder, whose outputs are its latents; got queries'):
    jax.eval_shape(model, inputs, queries)


def test_preset_runs_with_learned_queries_and_dropout():
  decoder = DecoderConfig(queries=LearnedQueries(num_queries=3, num_channels=8), num_outputs=OUTPUTS)
  config = UnifiedPerceiverConfig.tiny(CONFIG.input_adapter, decoder, STEPS)
  config = dataclasses.replace(config, self_attend=LayerConfig(num_heads=2, dropout=0.3))
  model = UnifiedPerceiver(config, rngs=nnx.Rngs(0))
  inputs, queries = inputs_and_queries()
  queries = Tokens(values=jnp.arange(QUERIES)[None].repeat(BATCH, 0) % 3, time=queries.time)
  assert compiled(model, inputs, queries).shape == (BATCH, QUERIES, OUTPUTS)
  train = jax.jit(lambda inputs, queries, key: model(inputs, queries, rngs=nnx.Rngs(dropout=key)))
  first, again, other = (np.asarray(train(inputs, queries, jax.random.key(seed))) for seed in (1, 1, 2))
  assert np.array_equal(first, again) and not np.array_equal(first, other)
