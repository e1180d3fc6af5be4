from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib import blocks
from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.blocks import ACTIVATIONS, CrossAttention, LatentBlock, LayerConfig, SelfAttention
from perceiver_lib.positions import Rotary
from perceiver_lib.tokens import Tokens
from tests.reference import make_golden
from tests.reference.numpy_perceiver import at
from tests.support import GOLDEN, as_users_call, assert_close, compiled, set_parameters

WIDTHS = {'num_heads': make_golden.HEADS, 'qk_channels': make_golden.QK_CHANNELS, 'v_channels': make_golden.V_CHANNELS}
C, F = make_golden.INPUT_CHANNELS, make_golden.QUERY_CHANNELS


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('residual', [True, False])
def test_golden_cross_attention(activation, residual):
  inputs, parameters, outputs = make_golden.load('layers')
  config = LayerConfig(**WIDTHS, activation=activation, query_residual=residual)
  layer = CrossAttention(config, num_query_channels=F, num_input_channels=C, rngs=nnx.Rngs(0))
  set_parameters(layer, at(parameters, 'cross_attend'))
  queries = Tokens(values=jnp.asarray(inputs['query']))
  tokens = Tokens(values=jnp.asarray(inputs['key']), valid=jnp.asarray(inputs['key_valid']))
  name = 'cross_attend' if residual else 'cross_attend_without_residual'
  assert_close(compiled(layer, queries, tokens).values, outputs[f'{name}_{activation}'], GOLDEN)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_golden_self_attention(activation):
  inputs, parameters, outputs = make_golden.load('layers')
  config = LayerConfig(**WIDTHS, activation=activation, widening_factor=3)
  layer = SelfAttention(config, num_channels=F, rngs=nnx.Rngs(0))
  set_parameters(layer, at(parameters, 'self_attend'))
  latents = Tokens(values=jnp.asarray(inputs['query']))
  assert_close(compiled(layer, latents).values, outputs[f'self_attend_{activation}'], GOLDEN)


def latents(seed=0, channels=6):
  values = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5, channels)), jnp.float32)
  return Tokens(values=values, time=jnp.asarray([[0, 0, 1, 1, 2]] * 2, jnp.int32))


def test_scanned_and_rematerialised_layers_equal_the_loop(monkeypatch):
  config = LayerConfig(num_heads=2, widening_factor=2, dropout=0.3)
  block = LatentBlock(config, num_channels=6, num_layers=3, rngs=nnx.Rngs(1))

  def loss(block, values, remat):
    return jnp.sum(jnp.sin(block(dataclasses.replace(latents(), values=values), remat=remat).values))

  gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
  in_a_loop = gradient(block, latents().values, False)
  assert_close(gradient(block, latents().values, True), in_a_loop)
  monkeypatch.setitem(blocks.SCANNED_LAYERS, 'cpu', 2)
  assert_close(
    jax.jit(jax.value_and_grad(functools.partial(loss, remat=False), argnums=(0, 1)))(block, latents().values),
    in_a_loop,
  )
  train = jax.jit(lambda key: block(latents(), remat=True, rngs=nnx.Rngs(dropout=key)).values)
  first, second = (train(jax.random.key(seed)) for seed in (0, 1))
  assert np.any(np.asarray(first) != np.asarray(second))


def test_rematerialised_layers_of_one_kind_are_one_scan():
  block = LatentBlock(LayerConfig(num_heads=2), num_channels=6, num_layers=5, rngs=nnx.Rngs(1))
  tokens = dataclasses.replace(latents(), position=jnp.arange(5)[None, :, None])
  for kinds in (1, 2):
    program = jax.make_jaxpr(lambda tokens: block(tokens, remat=True).values)(tokens)
    assert str(program).count('scan[') == kinds
    for layer in list(block.layers)[3:]:
      layer.attention.rotary = Rotary()


def test_latent_times_mask_the_processor():
  block = LatentBlock(LayerConfig(num_heads=2), num_channels=6, num_layers=2, rngs=nnx.Rngs(1))
  tokens = latents()

  def outputs(values):
    return jnp.sum(jnp.abs(block(dataclasses.replace(tokens, values=values)).values), axis=(0, 2))

  reached = np.abs(np.asarray(jax.jit(jax.jacobian(outputs))(tokens.values))).sum(axis=(1, 3)) > 0
  time = np.asarray(tokens.time[0])
  np.testing.assert_array_equal(reached, time[None, :] <= time[:, None])


def test_dropout_acts_in_training_only():
  config = LayerConfig(num_heads=2, dropout=0.5)
  layer = SelfAttention(config, num_channels=6, rngs=nnx.Rngs(0))
  plain = SelfAttention(LayerConfig(num_heads=2), num_channels=6, rngs=nnx.Rngs(0))
  expected = np.asarray(compiled(plain, latents()).values)
  np.testing.assert_array_equal(compiled(layer, latents()).values, expected)
  trained = compiled(lambda tokens: layer(tokens, rngs=nnx.Rngs(dropout=0)).values, latents())
  assert np.any(np.asarray(trained) != expected)


def test_modalities_must_match_the_adapters():
  adapter = EmbeddingAdapterConfig(num_embeddings=9, num_channels=4).build(nnx.Rngs(0))
  layer = CrossAttention(LayerConfig(num_heads=1), num_query_channels=6, num_input_channels=4, rngs=nnx.Rngs(0))
  ids = Tokens(values=jnp.zeros((2, 3), jnp.int32))
  queries = Tokens(values=latents().values)
  both = compiled(layer, queries, {'a': ids, 'b': ids}, {'a': adapter, 'b': adapter}).values
  assert_close(both, compiled(layer, queries, ids, adapter).values)  # the same tokens twice weigh the same twice
  with pytest.raises(ValueError, match=r"for the modalities \['a', 'b'\]; got \['a', 'c'\]"):
    layer(queries, {'a': ids, 'c': ids}, {'a': adapter, 'b': adapter})
  with pytest.raises(ValueError, match='by modality'):
    layer(queries, ids, {'a': adapter})


def test_unknown_activation_is_refused():
  with as_users_call(), pytest.raises(ValueError, match="gelu_tanh, gelu_erf, squared_relu; got 'relu'"):
    LayerConfig(num_heads=1, activation='relu')
