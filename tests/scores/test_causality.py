"""A leak shows in the gradients, and so does what should have been heard and was not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from perceiver_lib.scores.causality import Probe, num_violations, sensitivity

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
