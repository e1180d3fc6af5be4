"""A leak shows in the gradients, and so does what should have been heard and was not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.scores.causality import Probe, influence, num_violations, sensitivity
from perceiver_lib.tokens import Tokens

EARLIER = np.tril(np.ones((3, 3), bool))


def violations(outputs) -> int:
  probe = Probe(name='sums', outputs=outputs, allowed=EARLIER)
  return num_violations(probe, sensitivity(probe, 0))


def test_sums_of_what_came_before_keep_the_rule():
  assert violations(lambda values: jnp.cumsum(values, axis=1)) == 0


def test_every_later_input_that_moves_an_output_counts():
  assert violations(lambda values: jnp.broadcast_to(values.sum(1, keepdims=True), values.shape)) == 3


def test_an_input_that_should_move_an_output_and_does_not_counts_as_well():
  assert violations(lambda values: 0 * values) == EARLIER.sum()


class Sums(nnx.Module):
  """Running sums of the embedded ids, each channel with its own weight."""

  def __init__(self):
    self.input_adapter = EmbeddingAdapterConfig(num_embeddings=5, num_channels=2).build(nnx.Rngs(0))

  def __call__(self, tokens: Tokens) -> jnp.ndarray:
    return jnp.cumsum(self.input_adapter(tokens)[0] * jnp.array([[1.0, -2.0]]), axis=0)


def test_the_influence_of_ids_is_the_jacobian_with_respect_to_what_the_model_embeds():
  model, tokens = Sums(), Tokens(values=jnp.array([[4, 1, 1]]))
  rows, moved = influence(lambda model, tokens: model(tokens), model, tokens)
  np.testing.assert_array_equal(moved, 3.0 * EARLIER)
  np.testing.assert_allclose(rows, model(tokens))
