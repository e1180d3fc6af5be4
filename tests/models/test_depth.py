"""What repeats is compiled once: a scan over blocks and layers equals the loop, and its program does not grow."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib import blocks
from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.unified import UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.tokens import Tokens
from tests.support import assert_close

pytestmark = pytest.mark.gpu

ADAPTER = FeatureAdapterConfig(num_values=3)
DECODER = DecoderConfig(queries=LearnedQueries(num_queries=1, num_channels=8), num_outputs=5)
DEPTH = {'num_blocks': 3, 'num_self_attends_per_block': 1}
MODELS = {
  'perceiver': (
    Perceiver,
    dataclasses.replace(PerceiverConfig.tiny(ADAPTER, 5), **DEPTH, num_cross_attends=3, num_latents=2),
  ),
  'perceiver_io': (PerceiverIO, dataclasses.replace(PerceiverIOConfig.tiny(ADAPTER, DECODER), **DEPTH, num_latents=2)),
  'unified': (UnifiedPerceiver, dataclasses.replace(UnifiedPerceiverConfig.tiny(ADAPTER, DECODER, 1), **DEPTH)),
}
INPUTS = Tokens(values=jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3)), jnp.float32))


def loss(model, values, key=None):
  inputs = dataclasses.replace(INPUTS, values=values)
  queries = () if isinstance(model, Perceiver) else (Tokens(values=jnp.zeros((2, 1), jnp.int32)),)
  outputs = model(inputs, *queries, rngs=None if key is None else nnx.Rngs(dropout=key))
  return jnp.sum(jnp.sin(outputs))


def gradients(model, key=None):
  return jax.jit(jax.value_and_grad(functools.partial(loss, key=key), argnums=(0, 1)))(model, INPUTS.values)


@pytest.mark.parametrize('name', MODELS)
def test_a_scan_over_what_repeats_equals_the_loop(monkeypatch, name):
  kind, config = MODELS[name]
  model = kind(config, rngs=nnx.Rngs(0))
  in_a_loop = gradients(model)
  monkeypatch.setitem(blocks.SCANNED_LAYERS, 'cpu', 2)
  assert_close(gradients(model), in_a_loop)


def test_every_repeated_block_drops_something_else(monkeypatch):
  """With the same mask in all of them the mean over keys would still look right: count distinct masks instead."""
  masks = []

  def step(latents, index, rngs):
    keep = jax.random.bernoulli(rngs.dropout(), 0.5, latents.values.shape).astype(jnp.float32)
    return dataclasses.replace(latents, values=2 * latents.values + keep)

  zeros = Tokens(values=jnp.zeros((1, 16, 1)))
  for threshold in (2, 100):
    monkeypatch.setitem(blocks.SCANNED_LAYERS, 'cpu', threshold)
    bits = blocks.repeated(step, zeros, range(3), num_layers=1, remat=False, rngs=nnx.Rngs(dropout=0)).values
    masks.append([np.asarray(bits.astype(jnp.int32).ravel() >> index & 1) for index in range(3)])
  for of_three in masks:
    assert len({tuple(mask) for mask in of_three}) == 3


def test_the_program_of_the_gradient_does_not_grow_with_depth(monkeypatch):
  monkeypatch.setitem(blocks.SCANNED_LAYERS, 'cpu', 2)

  def size(num_blocks):
    config = dataclasses.replace(MODELS['perceiver'][1], num_blocks=num_blocks, num_cross_attends=num_blocks)
    model = nnx.eval_shape(lambda: Perceiver(config, rngs=nnx.Rngs(0)))
    program = jax.jit(jax.grad(loss)).lower(model, INPUTS.values).as_text()
    return len(program.splitlines())

  assert size(9) <= 1.01 * size(3)
