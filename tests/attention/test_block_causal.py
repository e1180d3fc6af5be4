"""Block-causal attention: its blocks, NaN, memory, stacks of it; that it equals the reference is in `test_matrix`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.attention import block_causal
from perceiver_lib.attention.block_causal import block_causal_attend
from perceiver_lib.blocks import LatentBlock, LayerConfig
from perceiver_lib.positions import Rotary
from perceiver_lib.tokens import Tokens
from tests.support import ROUNDING, assert_close

BATCH, STEPS, LATENTS, CHANNELS = 2, 7, 3, 10
NUM = STEPS * LATENTS


def operands(seed=0):
  random = np.random.default_rng(seed)
  q, k, v = (jnp.asarray(random.normal(size=(BATCH, 2, NUM, width)), jnp.float32) for width in (5, 5, 11))
  time = np.cumsum(random.integers(1, 4, (BATCH, STEPS)), axis=1).repeat(LATENTS, axis=1)
  return q, k, v, jnp.asarray(time, jnp.int32), jnp.asarray(random.random((BATCH, NUM)) > 0.3)


def flat(tree):
  """All gradients as one vector: that of the keys' bias is zero but for rounding, because a softmax cancels it."""
  return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_computes_the_lower_triangle_of_blocks_and_nothing_else():
  assert block_causal._block_pairs(9, 3).tolist() == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]


def test_nan_in_later_latents_leaves_earlier_outputs_bit_identical():
  q, k, v, time, _ = operands()
  rows = {'num_latents_per_timestep': LATENTS, 'block_rows': 6}
  attended = jax.jit(functools.partial(block_causal_attend, time=time, **rows))
  clean = attended(q, k, v)
  first_bad = 4 * LATENTS
  spoiled = attended(*(x.at[:, :, first_bad:].set(jnp.nan) for x in (q, k, v)))
  assert np.array_equal(spoiled[:, :, :first_bad], clean[:, :, :first_bad])
  assert np.isnan(spoiled[:, :, first_bad:]).all()


def test_memory_grows_with_the_number_of_latents_and_not_with_its_square():
  def temporary_bytes(num_steps):
    def loss(q, k, v, time):
      return jnp.sum(block_causal_attend(q, k, v, time=time, num_latents_per_timestep=8, block_rows=64))

    heads = [jax.ShapeDtypeStruct((1, 2, num_steps * 8, 4), jnp.float32)] * 3
    time = jax.ShapeDtypeStruct((1, num_steps * 8), jnp.int32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*heads, time).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes(1024) < 4.5 * temporary_bytes(256)


def test_refuses_latents_that_are_not_whole_timesteps():
  q, k, v, time, _ = operands()
  with pytest.raises(ValueError, match='whole timesteps of 4; got 21 latents'):
    block_causal_attend(q, k, v, time=time, num_latents_per_timestep=4)


def latents():
  random = np.random.default_rng(2)
  _, _, _, time, valid = operands()
  values = jnp.asarray(random.normal(size=(BATCH, NUM, CHANNELS)), jnp.float32)
  return Tokens(values=values, position=jnp.arange(NUM)[None, :, None], time=time, valid=valid)


def outputs_and_gradients(stack, tokens, **settings):
  def loss(stack, values):
    output = stack(Tokens(values=values, position=tokens.position, time=tokens.time, valid=tokens.valid), **settings)
    return jnp.sum(jnp.sin(output.values)), output.values

  (_, values), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(stack, tokens.values)
  return values, flat(gradients)


@pytest.mark.parametrize('remat', [False, True])
def test_a_stack_in_blocks_equals_the_stack_of_the_general_read(monkeypatch, remat):
  monkeypatch.setattr(block_causal, 'choose_chunk_size', lambda rows, keys: 1)
  config = LayerConfig(num_heads=2, rotary=Rotary(fraction=0.5))
  stack = LatentBlock(config, num_channels=CHANNELS, num_layers=3, rngs=nnx.Rngs(5))
  actual = outputs_and_gradients(stack, latents(), num_latents_per_timestep=LATENTS, remat=remat)
  assert_close(actual, outputs_and_gradients(stack, latents()), 2 * ROUNDING)


def test_dropout_of_branches_needs_rngs_and_changes_with_them():
  config = LayerConfig(num_heads=2, dropout=0.5)
  stack = LatentBlock(config, num_channels=CHANNELS, num_layers=2, rngs=nnx.Rngs(9))

  @functools.partial(jax.jit, static_argnums=0)
  def values(remat, key=None):
    rngs = None if key is None else nnx.Rngs(dropout=key)
    return stack(latents(), num_latents_per_timestep=LATENTS, remat=remat, rngs=rngs).values

  one, two = jax.random.key(1), jax.random.key(2)
  for remat in (False, True):
    assert np.array_equal(values(remat), values(remat)) and np.array_equal(values(remat, one), values(remat, one))
    assert not np.array_equal(values(remat, one), values(remat, two))
