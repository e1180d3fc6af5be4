"""Streamed reads with an adapter inside, their gradients, and that memory does not grow with the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.blocks import CrossAttention, LayerConfig
from perceiver_lib.positions import FourierFeatures, Rotary
from perceiver_lib.tokens import Tokens
from tests.support import STREAMED, assert_close

BATCH, INPUTS, QUERIES, CHANNELS = 2, 29, 5, 6
LAYER = LayerConfig(num_heads=2, qk_channels=8, v_channels=10, rotary=Rotary(fraction=0.5))
ADAPTERS = {
  'bytes': EmbeddingAdapterConfig(
    num_embeddings=256, num_channels=7, position=LearnedPositions(shape=(INPUTS,), num_channels=7)
  ),
  'pixels': FeatureAdapterConfig(
    num_values=3, num_projected_channels=2, position=FourierFeatures(num_bands=3, max_resolution=(INPUTS,))
  ),
}


def setting(kind: str, shared_position: bool):
  random = np.random.default_rng(1)
  config = ADAPTERS[kind]
  adapter = config.build(nnx.Rngs(2))
  layer = CrossAttention(LAYER, num_query_channels=CHANNELS, num_input_channels=config.num_channels, rngs=nnx.Rngs(3))
  rows = 1 if shared_position else BATCH
  if kind == 'bytes':
    values = jnp.asarray(random.integers(0, 256, (BATCH, INPUTS)), jnp.int32)
    position = jnp.broadcast_to(jnp.arange(INPUTS, dtype=jnp.int32)[None, :, None], (rows, INPUTS, 1))
  else:
    values = jnp.asarray(random.normal(size=(BATCH, INPUTS, 3)), jnp.float32)
    position = jnp.asarray(random.uniform(-1, 1, (rows, INPUTS, 1)), jnp.float32)
  inputs = Tokens(
    values=values,
    position=position,
    time=jnp.asarray(random.integers(0, 5, (BATCH, INPUTS)), jnp.int32),
    valid=jnp.asarray(random.random((BATCH, INPUTS)) > 0.2),
  )
  queries = Tokens(
    values=jnp.asarray(random.normal(size=(BATCH, QUERIES, CHANNELS)), jnp.float32),
    position=jnp.arange(QUERIES, dtype=jnp.int32)[None, :, None],
    time=jnp.asarray(random.integers(0, 5, (BATCH, QUERIES)), jnp.int32),
  )
  return layer, adapter, queries, inputs


@pytest.mark.parametrize('shared_position', [True, False])
@pytest.mark.parametrize('kind', ADAPTERS)
def test_streamed_adapter_equals_dense_in_all_gradients(kind, shared_position):
  layer, adapter, queries, inputs = setting(kind, shared_position)

  def loss(modules, queries, values, position, chunk_size):
    layer, adapter = modules
    tokens = Tokens(values=values, position=position, time=inputs.time, valid=inputs.valid)
    read = layer(Tokens(values=queries, position=QUERY_POSITION, time=TIME), tokens, adapter, chunk_size=chunk_size)
    return jnp.sum(jnp.sin(read.values))

  QUERY_POSITION, TIME = queries.position, queries.time
  floats = (0, 1, 2, 3) if kind == 'pixels' else (0, 1)
  gradient = jax.jit(jax.value_and_grad(loss, argnums=floats), static_argnums=4)
  dense = gradient((layer, adapter), queries.values, inputs.values, inputs.position, None)
  for chunk_size in (1, 8, 29):
    streamed = gradient((layer, adapter), queries.values, inputs.values, inputs.position, chunk_size)
    assert_close(streamed, dense, STREAMED)


def test_gradients_of_invalid_inputs_are_zero_and_nan_in_them_reaches_no_gradient():
  layer, adapter, queries, inputs = setting('pixels', True)

  def gradients(values, chunk_size):
    def loss(layer, values):
      tokens = Tokens(values=values, position=inputs.position, time=inputs.time, valid=inputs.valid)
      return jnp.sum(layer(queries, tokens, adapter, chunk_size=chunk_size).values ** 2)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(layer, values)

  invalid = np.asarray(~inputs.valid)
  for chunk_size in (None, 4):
    clean = gradients(inputs.values, chunk_size)
    spoiled = gradients(jnp.where(invalid[..., None], jnp.nan, inputs.values), chunk_size)
    assert_close(spoiled, clean, 0.0)
    assert np.all(np.asarray(clean[1])[invalid] == 0) and np.any(np.asarray(clean[1])[~invalid] != 0)


def test_compiled_memory_does_not_grow_with_the_input():
  layer, adapter, queries, _ = setting('bytes', True)
  adapter.position = None

  def temporary_bytes(num_inputs: int) -> int:
    def loss(modules, values, position):
      layer, adapter = modules
      timeless = Tokens(values=queries.values, position=queries.position)
      tokens = Tokens(values=values, position=position)
      return jnp.sum(layer(timeless, tokens, adapter, chunk_size=256).values)

    values = jax.ShapeDtypeStruct((BATCH, num_inputs), jnp.uint8)
    position = jax.ShapeDtypeStruct((1, num_inputs, 1), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower((layer, adapter), values, position).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = temporary_bytes(2**12), temporary_bytes(2**18)
  assert long < 1.05 * short + 2**16
