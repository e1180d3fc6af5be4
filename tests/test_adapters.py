from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.parameters import count
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.tokens import Tokens
from tests.support import as_users_call

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3)), jnp.uint8)


def test_pixels_become_minus_one_to_one_beside_their_position():
  tokens = pixel_tokens(IMAGES)
  config = pixel_adapter((6, 4, 3), num_bands=5)
  channels = config.build(nnx.Rngs(0))(tokens)
  assert channels.shape == (2, 24, config.num_channels) and config.num_channels == 3 + 2 * 11
  np.testing.assert_allclose(channels[..., :3], np.asarray(IMAGES).reshape(2, 24, 3) * (2 / 255) - 1, atol=1e-6)
  np.testing.assert_array_equal(channels[0, :, 3:5], tokens.position[0])
  np.testing.assert_array_equal(channels[0, :, 3:], channels[1, :, 3:])


def test_pixels_keep_row_column_order():
  tokens = pixel_tokens(IMAGES)
  np.testing.assert_array_equal(tokens.values[1, 4 + 3], IMAGES[1, 1, 3])
  np.testing.assert_allclose(tokens.position[0, 4 + 3], [-1 + 2 / 5, 1], atol=1e-6)
  with as_users_call(), pytest.raises(ValueError, match='height, width, channels'):
    pixel_tokens(IMAGES[0])


def test_learned_positions_are_rows_of_the_table():
  config = pixel_adapter((6, 4, 3), num_position_channels=7)
  adapter = config.build(nnx.Rngs(0))
  tokens = pixel_tokens(IMAGES, integer_positions=True)
  channels = adapter(tokens)
  assert channels.shape[-1] == config.num_channels == 3 + 7
  np.testing.assert_array_equal(channels[0, :, 3:], adapter.position.table[...])
  with as_users_call(), pytest.raises(ValueError, match='needs integer positions'):
    adapter(pixel_tokens(IMAGES))


def test_either_kind_of_position_must_be_chosen():
  with pytest.raises(ValueError, match='either num_bands'):
    pixel_adapter((6, 4, 3))


def test_projections_change_the_widths_as_the_config_says():
  position = LearnedPositions(shape=(24,), num_channels=5, num_projected_channels=9)
  config = FeatureAdapterConfig(num_values=3, num_projected_channels=4, position=position)
  adapter = config.build(nnx.Rngs(0))
  tokens = Tokens(values=IMAGES.reshape(2, 24, 3), position=jnp.arange(24, dtype=jnp.int32)[None, :, None])
  assert adapter(tokens).shape == (2, 24, config.num_channels) == (2, 24, 13)
  assert count(adapter) == 3 * 4 + 4 + 24 * 5 + 5 * 9 + 9


def test_embedding_and_its_tied_head():
  config = EmbeddingAdapterConfig(
    num_embeddings=262, num_channels=8, position=LearnedPositions(shape=(11,), num_channels=8)
  )
  adapter = config.build(nnx.Rngs(0))
  ids = jnp.asarray([[5, 261, 5]], jnp.int32)
  tokens = Tokens(values=ids, position=jnp.asarray([[[0], [1], [2]]], jnp.int32))
  channels = adapter(tokens)
  expected = adapter.embedding[...][ids] + adapter.position.table[...][:3][None]
  np.testing.assert_array_equal(channels, expected)
  logits = adapter.attend(channels)
  np.testing.assert_allclose(logits, np.asarray(channels) @ np.asarray(adapter.embedding[...]).T, atol=1e-6)


@pytest.mark.parametrize(
  ('make', 'sentence'),
  [
    (
      lambda: FeatureAdapterConfig(num_values=2).build(nnx.Rngs(0))(pixel_tokens(IMAGES)),
      r'takes 2 values a token; got \(3,\)',
    ),
    (
      lambda: FeatureAdapterConfig(num_values=3, position=FourierFeatures(num_bands=2, max_resolution=(4,))).build(
        nnx.Rngs(0)
      )(Tokens(values=IMAGES.reshape(2, 24, 3))),
      'got tokens without a position',
    ),
    (
      lambda: EmbeddingAdapterConfig(num_embeddings=4, num_channels=3).build(nnx.Rngs(0))(
        Tokens(values=jnp.zeros((1, 2), jnp.float32))
      ),
      r'Ids must be integers \[b, m\]; got float32',
    ),
    (
      lambda: EmbeddingAdapterConfig(
        num_embeddings=4, num_channels=3, position=LearnedPositions(shape=(2,), num_channels=5)
      ),
      'must be 3 channels wide, as the embedding; got 5',
    ),
  ],
)
def test_wrong_inputs_are_named(make, sentence):
  with as_users_call(), pytest.raises(ValueError, match=sentence):
    make()
