"""What a byte carries of its surroundings, on texts small enough to check by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.modalities.text import MASK, PAD, VOCAB_SIZE
from perceiver_lib.modalities.text_context import (
  NGRAMS,
  ContextAdapterConfig,
  holes,
  neighbourhoods,
  num_hole_ids,
  tokens_at,
)
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


def test_a_token_of_the_wrong_width_is_refused_with_what_was_expected():
  config = ContextAdapterConfig.of_neighbourhoods(2, num_id_channels=3, num_channels=7)
  tokens = neighbourhoods(jnp.zeros((1, 5), jnp.int32), radius=1, span=5)
  with as_users_call(), pytest.raises(ValueError, match=r'integer ids \[b, m, 5\]; got int32 of shape \(1, 5, 3\)'):
    config.build(nnx.Rngs(0))(tokens)


def test_a_hole_is_what_stands_around_it_and_the_place_within():
  ids = np.frombuffer(b'ab cd ef gh', np.uint8).astype(np.int32)[None] + 6
  ids[0, 3:5] = MASK
  tokens = holes(jnp.asarray(ids), jnp.array([[3, 4]], jnp.int32), radius=6, span=11, num_buckets=50)
  assert tokens.values.shape == (1, 2, num_hole_ids(6))
  first, second = np.asarray(tokens.values[0])
  np.testing.assert_array_equal(first[:6], [*ids[0, 2::-1], PAD, PAD, PAD])
  np.testing.assert_array_equal(first[6:12], ids[0, 5:11])
  np.testing.assert_array_equal([first[12:15], second[12:15]], [[1, 2, 3], [2, 1, 3]])
  # Both bytes are in one hole: all else is the same, and n-grams fall into the buckets behind the bytes.
  np.testing.assert_array_equal(np.delete(first, [12, 13]), np.delete(second, [12, 13]))
  assert (first[15:] >= VOCAB_SIZE).all() and (first[15:] < VOCAB_SIZE + 50).all()
  with as_users_call(), pytest.raises(ValueError, match='radius of at least 6 bytes, its longest n-gram; got 5'):
    holes(jnp.asarray(ids), jnp.array([[3]], jnp.int32), radius=5, span=11, num_buckets=50)


def test_equal_ngrams_share_a_bucket_and_the_two_sides_do_not():
  text = np.frombuffer(b'of the X of the Y of the', np.uint8).astype(np.int32)[None] + 6
  text[0, [7, 16]] = MASK
  buckets = holes(jnp.asarray(text), jnp.array([[7, 16]], jnp.int32), radius=6, span=24, num_buckets=1_000)
  before, after = np.split(np.asarray(buckets.values[0, :, 15:]), 2, axis=-1)
  np.testing.assert_array_equal(before[0], before[1])
  np.testing.assert_array_equal(after[0], after[1])
  assert len(NGRAMS) == before.shape[1] and not np.isin(before, after).any()
