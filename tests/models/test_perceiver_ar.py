"""Perceiver AR against an independent statement of its maths, and against what causality means."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import (
  EmbeddingAdapterConfig,
  FactoredPositions,
  FeatureAdapterConfig,
  LearnedPositions,
)
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.models.last_inputs import last_valid
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.positions import Rotary, SinusoidalPositions
from perceiver_lib.tokens import Tokens
from tests.reference import numpy_perceiver as reference
from tests.reference.make_golden import HEADS, LATENT_CHANNELS, LATENTS, OUTPUTS, QK_CHANNELS, V_CHANNELS, load
from tests.support import GOLDEN, ROUNDING, assert_close, compiled, parameters_of, renamed, set_parameters

VOCABULARY = 11


def tiny(*, scale: float = 0.3, **changes) -> PerceiverAR:
  config = dataclasses.replace(PerceiverARConfig.tiny(VOCABULARY), num_latents=5, **changes)
  return filled(PerceiverAR(config, rngs=nnx.Rngs(0)), scale=scale)


def ids(b: int, m: int, seed: int = 1) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, VOCABULARY, (b, m)).astype(np.int32)


def of_channels(rotary: Rotary, **changes) -> PerceiverAR:
  """The golden model: inputs are channels already, so the adapter is the identity."""
  layer = LayerConfig(
    num_heads=HEADS,
    qk_channels=QK_CHANNELS,
    v_channels=V_CHANNELS,
    widening_factor=3,
    activation='squared_relu',
    rotary=rotary,
  )
  config = PerceiverARConfig(
    input_adapter=FeatureAdapterConfig(num_values=LATENT_CHANNELS),
    num_latents=LATENTS,
    num_latent_channels=LATENT_CHANNELS,
    num_outputs=OUTPUTS,
    num_self_attends=2,
    cross_attend=dataclasses.replace(layer, num_heads=1),
    self_attend=layer,
    **changes,
  )
  return PerceiverAR(config, rngs=nnx.Rngs(0))


def library_names(parameters) -> dict[str, np.ndarray]:
  prefixes = {
    'encoder.latent_projection': 'latent_projection',
    'decoder.output_norm': 'output_norm',
    'decoder.output': 'head',
  }
  return renamed(parameters, **prefixes)


def golden_tokens(inputs) -> Tokens:
  return Tokens(
    values=jnp.asarray(inputs['inputs']),
    valid=jnp.asarray(inputs['valid']),
    position=jnp.asarray(inputs['position'], jnp.int32)[..., None],
  )


@pytest.mark.parametrize('chunk_size', [None, 3])
@pytest.mark.parametrize(
  ('name', 'rotary'),
  [
    ('standard', Rotary(base=10_000.0, fraction=0.7)),
    ('endpoint', Rotary(base=8192.0, series='end_point')),
  ],
)
def test_equals_the_golden_arrays(name, rotary, chunk_size):
  inputs, parameters, outputs = load('perceiver_ar')
  model = of_channels(rotary)
  set_parameters(model, library_names(parameters))
  logits = compiled(model, golden_tokens(inputs), chunk_size=chunk_size)
  np.testing.assert_array_equal(logits.time, outputs['indices'])
  np.testing.assert_array_equal(logits.valid, outputs['indices'] >= 0)
  exists = outputs['indices'] >= 0
  assert_close(np.asarray(logits.values)[exists], outputs[f'{name}_logits'][exists], GOLDEN)


@pytest.mark.parametrize('chunk_size', [None, 3])
def test_query_norm_of_latent_keys_and_layers_that_do_not_rotate_equal_the_reference(chunk_size):
  inputs, parameters, _ = load('perceiver_ar')
  model = of_channels(Rotary(), key_norm='query_norm')
  set_parameters(model, library_names(parameters))
  expected, indices = reference.perceiver_ar(
    parameters,
    inputs['inputs'],
    inputs['valid'],
    num_latents=LATENTS,
    layers=(0, 1),
    num_cross_heads=1,
    num_self_heads=HEADS,
    rotate=reference.rotary,
    position=inputs['position'],
    latent_keys='query_norm',
  )
  tokens = golden_tokens(inputs)
  logits = compiled(model, tokens, chunk_size=chunk_size).values
  assert_close(np.asarray(logits)[indices >= 0], expected[indices >= 0], GOLDEN)
  shared = of_channels(Rotary())
  set_parameters(shared, library_names(parameters))
  assert not np.allclose(compiled(shared, tokens).values, logits, atol=1e-3)


def test_which_layers_rotate_is_a_field_that_remat_respects():
  tokens = Tokens(values=jnp.asarray(ids(2, 13)))
  outputs = {turn: compiled(tiny(num_rotary_layers=turn), tokens).values for turn in (0, 1, 2, None)}
  np.testing.assert_array_equal(outputs[2], outputs[None])
  assert not np.allclose(outputs[0], outputs[1], atol=1e-3)
  assert not np.allclose(outputs[1], outputs[2], atol=1e-3)
  assert_close(compiled(tiny(num_rotary_layers=1), tokens, remat=True).values, outputs[1])


def test_last_valid_takes_the_newest_tokens_whatever_lies_between():
  valid = np.array([[1, 1, 0, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(last_valid(jnp.asarray(valid), 3), reference.last_valid(valid, 3))
  np.testing.assert_array_equal(last_valid(jnp.asarray(valid), 3), [[1, 3, 4], [-1, 2, 3], [-1, -1, -1]])
  np.testing.assert_array_equal(last_valid(jnp.asarray(valid), 7), reference.last_valid(valid, 7))


MASKS = np.array(
  [[1] * 11, [0] * 3 + [1] * 8, [1] * 7 + [0] * 4, [1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1], [0] * 9 + [1] * 2], bool
)


@pytest.mark.parametrize('chunk_size', [None, 4])
@pytest.mark.parametrize('key_norm', ['shared', 'query_norm'])
def test_the_jacobian_of_every_output_is_exactly_zero_for_later_and_invalid_inputs(key_norm, chunk_size):
  model = filled(of_channels(Rotary(), key_norm=key_norm), scale=0.3)
  values = jnp.asarray(np.random.default_rng(2).standard_normal((len(MASKS), 11, LATENT_CHANNELS)), jnp.float32)

  def of_row(row, valid):
    tokens = Tokens(values=row[None], valid=valid[None])
    return model(tokens, num_latents=LATENTS, chunk_size=chunk_size).values[0].sum(-1)

  jacobian = jax.jit(jax.vmap(jax.jacrev(of_row)))(values, jnp.asarray(MASKS))
  indices = reference.last_valid(MASKS, LATENTS)
  seen = 0
  for row, latent in np.ndindex(indices.shape):
    if indices[row, latent] < 0:
      continue
    allowed = MASKS[row] & (np.arange(11) <= indices[row, latent])
    size = np.abs(np.asarray(jacobian[row, latent])).max(-1)
    assert (size[~allowed] == 0).all()
    assert (size[allowed] > 0).all()
    seen += 1
  assert seen > 15


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_nan_in_later_or_invalid_inputs_leaves_earlier_outputs_bit_identical(chunk_size):
  model = filled(of_channels(Rotary()), scale=0.3)
  run = jax.jit(lambda values: model(Tokens(values=values, valid=jnp.asarray(MASKS)), chunk_size=chunk_size).values)
  values = np.random.default_rng(3).standard_normal((len(MASKS), 11, LATENT_CHANNELS)).astype(np.float32)
  indices, clean = reference.last_valid(MASKS, LATENTS), np.asarray(run(values))
  for bad in (np.nan, np.inf, 1e30):
    for cut in (8, 9, 11):
      spoilt = np.where((~MASKS | (np.arange(11) >= cut))[..., None], np.float32(bad), values)
      before = (indices >= 0) & (indices < cut)
      assert before.any()
      np.testing.assert_array_equal(np.asarray(run(spoilt))[before], clean[before])


@pytest.mark.parametrize('num_latents', [3, 5, 9])
def test_padding_on_either_side_changes_nothing(num_latents):
  """Other lengths are summed up in another order, so each call is held against what the row alone means in float64.

  Parameters of moderate size: larger ones make larger logits, and a stack that enlarges their rounding tenfold.
  """
  model, row = tiny(scale=0.1), ids(1, 7)
  run = jax.jit(lambda tokens: model(tokens, num_latents=num_latents))
  expected, index = reference.perceiver_ar(
    parameters_of(model),
    np.asarray(model.input_adapter(Tokens(values=jnp.asarray(row)))),
    np.ones_like(row, bool),
    num_latents=num_latents,
    layers=(0, 1),
    num_cross_heads=2,
    num_self_heads=2,
    rotate=functools.partial(reference.rotary, fraction=0.5),
    position=np.arange(7)[None],
  )
  exists = index >= 0
  assert exists.sum() == min(num_latents, 7)
  for left, right in ((0, 0), (4, 0), (0, 4), (1, 3)):
    padded = np.pad(row, ((0, 0), (left, right)), constant_values=VOCABULARY - 1)
    valid = np.pad(np.ones_like(row, bool), ((0, 0), (left, right)))
    logits = run(Tokens(values=jnp.asarray(padded), valid=None if valid.all() else jnp.asarray(valid)))
    np.testing.assert_array_equal(logits.valid, exists)
    np.testing.assert_array_equal(np.asarray(logits.time)[exists] - left, index[exists])
    assert_close(np.asarray(logits.values)[exists], expected[exists], GOLDEN)


def test_without_a_stack_another_number_of_latents_gives_the_same_last_outputs():
  """With a stack, more latents are more depth behind each output: the test-time choice of the paper."""
  tokens = Tokens(values=jnp.asarray(ids(2, 13)))
  shallow, deep = (
    [compiled(tiny(**s), tokens, num_latents=n).values for n in (9, 4)] for s in ({'num_self_attends': 0}, {})
  )
  assert_close(shallow[0][:, -4:], shallow[1])
  assert not np.allclose(deep[0][:, -4:], deep[1], atol=1e-3)


def test_positions_of_several_axes_come_from_data():
  adapter = EmbeddingAdapterConfig(
    num_embeddings=VOCABULARY, num_channels=16, position=FactoredPositions(shape=(3, 5), num_channels=16)
  )
  model = tiny(input_adapter=adapter)
  grid = np.stack(np.meshgrid(np.arange(3), np.arange(5), indexing='ij'), -1).reshape(1, 15, 2)
  tokens = Tokens(values=jnp.asarray(ids(2, 15)), position=jnp.asarray(grid))
  channels = model.input_adapter(tokens)
  tables = [np.asarray(axis.table[...]) for axis in model.input_adapter.position.axes]
  expected = (
    np.asarray(model.input_adapter.embedding[...])[tokens.values] + tables[0][grid[..., 0]] + tables[1][grid[..., 1]]
  )
  assert_close(channels, expected)
  moved = dataclasses.replace(tokens, position=jnp.asarray(grid[:, ::-1].copy()))
  run = jax.jit(model)
  assert not np.allclose(run(tokens).values, run(moved).values, atol=1e-3)


def test_sinusoidal_positions_are_those_of_perceiver_ar():
  features = SinusoidalPositions(num_channels=8)(jnp.arange(7)[None, :, None])
  position, scale = np.arange(7)[:, None], -np.log(10_000.0) / 3
  angles = position * np.exp(np.arange(4) * scale)
  assert_close(features[0], np.concatenate([np.sin(angles), np.cos(angles)], axis=1))


def test_a_tied_head_scores_with_the_embedding():
  model = tiny(output='tied')
  tokens = Tokens(values=jnp.asarray(ids(2, 7)))
  logits, latents = compiled(
    lambda tokens: (model(tokens).values, model.output_norm(model.encode(tokens).values)), tokens
  )
  expected = np.asarray(latents) @ np.asarray(model.input_adapter.embedding[...]).T + np.asarray(model.head.bias[...])
  assert_close(logits, expected, 2 * ROUNDING)


def test_a_fresh_model_knows_nothing():
  model = PerceiverAR(PerceiverARConfig.tiny(VOCABULARY), rngs=nnx.Rngs(0))
  assert (compiled(model, Tokens(values=jnp.asarray(ids(1, 9)))).values == 0).all()


def test_parameter_paths_are_those_of_the_family():
  names = {'.'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(tiny(), nnx.Param))}
  for name in (
    'input_adapter.embedding',
    'latent_projection.kernel',
    'cross_attends.0.attention.query.kernel',
    'blocks.0.layers.1.mlp.up.kernel',
    'output_norm.scale',
    'head.kernel',
  ):
    assert name in names


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'num_latent_channels': 32, 'latent_projection': 'none'}, 'needs inputs as wide as the latents'),
    ({'num_latent_channels': 32, 'key_norm': 'query_norm'}, 'needs inputs as wide as the latents'),
    ({'output': 'tied', 'num_outputs': 7}, 'one output for each of 11 embeddings'),
  ],
)
def test_a_config_refuses_what_cannot_be(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    tiny(**changes)


def test_inputs_with_a_time_are_refused():
  tokens = Tokens(values=jnp.asarray(ids(1, 5)), time=jnp.zeros((1, 5), jnp.int32))
  with pytest.raises(ValueError, match='whose time is their index'):
    tiny()(tokens)
  learned = LearnedPositions(shape=(5,), num_channels=8)
  with pytest.raises(ValueError, match='must be 16 channels wide'):
    EmbeddingAdapterConfig(num_embeddings=3, num_channels=16, position=learned)
