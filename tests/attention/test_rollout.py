"""Rollout against the products written out, and against the attention rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.attention.capture import AttentionMap, capture_attention
from perceiver_lib.attention.rollout import attention_rollout
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.tokens import Tokens
from tests.support import assert_close

B, H, N, M, O = 2, 3, 5, 11, 7


def weights(seed: int, queries: int, keys: int) -> AttentionMap:
  logits = jnp.asarray(np.random.default_rng(seed).standard_normal((B, H, queries, keys)), jnp.float32)
  return AttentionMap(weights=jax.nn.softmax(logits, axis=-1), logits=logits)


def test_rollout_is_the_product_of_the_layers_with_their_residuals():
  maps = {
    'encoder.cross_attention.0': weights(0, N, M),
    'processor.0': weights(1, N, N),
    'encoder.cross_attention.1': weights(2, N, M),
    'processor.1': weights(3, N, N),
    'decoder': weights(4, O, N),
  }
  first, mix, again, mix_again, out = (np.asarray(one.weights).mean(1) for one in maps.values())
  held = 0.25 * first + 0.75 * mix @ first
  held = 0.25 * held + 0.75 * again
  expected = out @ (0.25 * held + 0.75 * mix_again @ held)
  found = attention_rollout(maps, residual=0.25)
  assert_close(found, expected)
  assert_close(found.sum(-1), np.ones((B, O)))


def test_rollout_of_a_causal_model_has_no_future_and_holds_each_token_itself():
  model = PerceiverAR(PerceiverARConfig.tiny(7), rngs=nnx.Rngs(0))
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 7, (1, 13)), jnp.int32)
  output, maps = jax.jit(capture_attention(lambda ids: model(Tokens(values=ids), num_latents=5)))(ids)
  found = np.asarray(attention_rollout(maps, latent_inputs=output.time))[0]
  last = np.asarray(output.time)[0]
  for row, time in zip(found, last, strict=True):
    assert (row[time + 1 :] == 0).all() and (row[: time + 1] > 0).all()
    assert row.argmax() == time
  assert_close(found.sum(-1), np.ones(5))


def test_rollout_refuses_maps_that_say_too_little():
  with pytest.raises(ValueError, match='begins with the map of a read'):
    attention_rollout({'processor.0': weights(0, N, N)})
  with pytest.raises(ValueError, match=r'maps of all latents: processor\.0 has 5 keys for 2'):
    attention_rollout({'encoder.cross_attention.0': weights(0, 2, M), 'processor.0': weights(1, N, N)})
