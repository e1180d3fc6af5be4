"""Linear layers, layer norms and residual sums over rows: the mathematics of `nnx`, and how it is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.attention.products import LayerNorm, Linear, added
from perceiver_lib.blocks import LatentBlock, LayerConfig
from perceiver_lib.tokens import Tokens
from tests.support import assert_close, value_and_gradients

CHANNELS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)


@pytest.mark.parametrize(('ours', 'theirs', 'sizes'), [(Linear, nnx.Linear, (6, 4)), (LayerNorm, nnx.LayerNorm, (6,))])
def test_outputs_and_gradients_are_those_of_nnx(ours, theirs, sizes):
  apply = lambda layer, channels: layer(channels)  # noqa: E731
  (value, (layer, channels)), (expected_value, (expected_layer, expected)) = (
    value_and_gradients(apply, kind(*sizes, rngs=nnx.Rngs(0)), CHANNELS) for kind in (ours, theirs)
  )
  assert_close([value, channels], [expected_value, expected])
  assert_close(jax.tree.leaves(nnx.state(layer)), jax.tree.leaves(nnx.state(expected_layer)))


def test_a_residual_sum_keeps_its_shape():
  np.testing.assert_array_equal(added(CHANNELS, 2 * CHANNELS), 3 * CHANNELS)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='how the CPU compiler fuses')
def test_the_gradient_of_a_layer_does_not_recompute_the_sums_of_all_layers_above():
  """Else the largest fusion reads what every layer above has added, and the work is quadratic in depth."""

  def largest_fusion(num_layers: int) -> int:
    layer = LayerConfig(num_heads=2)
    block = LatentBlock(layer, num_channels=32, num_layers=num_layers, rngs=nnx.Rngs(0))
    loss = lambda block, latents: jnp.mean(jnp.square(block(Tokens(values=latents)).values))  # noqa: E731
    program = jax.jit(jax.grad(loss)).lower(block, jnp.ones((2, 64, 32))).compile().as_text()
    return max(
      line.split(' fusion(')[1].split('), kind=')[0].count('%') for line in program.splitlines() if ' fusion(' in line
    )

  assert largest_fusion(8) == largest_fusion(4)
