"""What a byte carries of its surroundings, on texts small enough to check by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.modalities.text import PAD
from perceiver_lib.modalities.text_context import ContextAdapterConfig, neighbourhoods, tokens_at, with_previous
from perceiver_lib.tokens import Tokens
from tests.support import as_users_call


def test_neighbourhoods_are_the_bytes_around_and_padding_is_in_none():
  ids = jnp.array([[7, 8, 9, 10, 11]], jnp.int32)
  valid = jnp.array([[True, True, True, True, False]])
  tokens = neighbourhoods(ids, radius=1, span=4, valid=valid)
  expected = [[PAD, 7, 8], [7, 8, 9], [8, 9, 10], [9, 10, PAD], [10, PAD, PAD]]
  np.testing.assert_array_equal(tokens.values[0], expected)
  np.testing.assert_array_equal(tokens.position[0, :, 0], [-1.0, -0.5, 0.0, 0.5, 1.0])
  chosen = tokens_at(tokens, jnp.array([[3, 1]], jnp.int32))
  np.testing.assert_array_equal(chosen.values[0], [expected[3], expected[1]])
  np.testing.assert_array_equal(chosen.position[0, :, 0], [0.5, -0.5])


def test_a_token_carries_the_ids_before_it_and_no_padding():
  ids, valid = jnp.array([[11, 13, 17, 19]]), jnp.array([[False, True, True, True]])
  carried = with_previous(Tokens(values=ids, valid=valid), 3).values[0].tolist()
  assert carried == [[PAD, PAD, PAD], [13, PAD, PAD], [17, 13, PAD], [19, 17, 13]]


def test_a_token_of_the_wrong_width_is_refused_with_what_was_expected():
  config = ContextAdapterConfig.of_neighbourhoods(2, num_id_channels=3, num_channels=7)
  tokens = neighbourhoods(jnp.zeros((1, 5), jnp.int32), radius=1, span=5)
  with as_users_call(), pytest.raises(ValueError, match=r'integer ids \[b, m, 5\]; got int32 of shape \(1, 5, 3\)'):
    config.build(nnx.Rngs(0))(tokens)
