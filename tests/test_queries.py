from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import LearnedPositions
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.positions import FourierFeatures, grid, indices
from perceiver_lib.queries import LearnedQueries, PositionQueries, position_queries
from perceiver_lib.tokens import Tokens
from tests.support import as_users_call

FOURIER = FourierFeatures(num_bands=3, max_resolution=(5, 7))


def test_learned_queries_are_rows_of_their_table():
  queries = LearnedQueries(num_queries=5, num_channels=3).build(nnx.Rngs(0))
  np.testing.assert_array_equal(queries(queries.all_rows(2)), np.stack([queries.table[...]] * 2))
  ids = jnp.array([[4, 0, 4]])
  np.testing.assert_array_equal(queries(Tokens(values=ids))[0], queries.table[...][ids[0]])


def test_learned_queries_refuse_what_is_no_row():
  queries = LearnedQueries(num_queries=5, num_channels=3).build(nnx.Rngs(0))
  with pytest.raises(ValueError, match='There are 5 learned queries; got ids from 0 to 5'):
    queries(Tokens(values=jnp.array([[0, 5]])))
  with pytest.raises(ValueError, match=r'integer ids \[b, o\]; got float32 of shape \(1, 2\)'):
    queries(Tokens(values=jnp.zeros((1, 2))))
  assert jax.jit(lambda ids: queries(Tokens(values=ids)))(jnp.array([[0, 4]])).shape == (1, 2, 3)
  constant = jnp.array([[0, 4]])
  assert jax.jit(lambda: queries(Tokens(values=constant)))().shape == (1, 2, 3)


def test_position_queries_are_features_of_shared_or_own_positions():
  config = PositionQueries(position=FOURIER)
  queries = config.build(nnx.Rngs(0))
  shared = queries(position_queries(grid((5, 7)), batch_size=2))
  assert shared.shape == (2, 35, config.num_channels) == (2, 35, 14)
  np.testing.assert_array_equal(shared[1], FOURIER(jnp.asarray(grid((5, 7)))[None])[0])
  own = np.stack([grid((5, 7)), grid((5, 7), end_points=False)])
  channels = queries(position_queries(own, batch_size=2))
  np.testing.assert_array_equal(channels[0], shared[0])
  assert np.abs(channels[1] - shared[1]).max() > 0.1
  with pytest.raises(ValueError, match=r'carry no values, \[b, o, 0\] .* got \(2, 35, 3\)'):
    queries(Tokens(values=jnp.zeros((2, 35, 3)), position=jnp.asarray(own)))
  with as_users_call(), pytest.raises(ValueError, match=r'\[o, p\] or \[b, o, p\]; got shape \(4,\)'):
    position_queries(np.zeros(4), batch_size=1)
  with as_users_call(), pytest.raises(ValueError, match=r'queries.valid must be \[2, 35\].* got shape \(2, 34\)'):
    position_queries(grid((5, 7)), batch_size=2, valid=np.ones((2, 34), bool))


def test_learned_positions_as_queries_need_integer_coordinates():
  config = PositionQueries(position=LearnedPositions(shape=(2, 3), num_channels=5, num_projected_channels=4))
  queries = config.build(nnx.Rngs(0))
  assert queries(position_queries(indices((2, 3)), batch_size=2)).shape == (2, 6, config.num_channels) == (2, 6, 4)
  with as_users_call(), pytest.raises(ValueError, match='needs integer positions'):
    queries(position_queries(grid((2, 3)), batch_size=2))


def test_modalities_are_padded_to_one_width_by_a_vector_of_their_own():
  position, learned = PositionQueries(position=FOURIER), LearnedQueries(num_queries=2, num_channels=11)
  config = ModalityAdaptersConfig(modalities=(('image', position), ('label', learned)), num_channels=16)
  adapters = config.build(nnx.Rngs(0))
  image = adapters['image'](position_queries(grid((5, 7)), batch_size=2))
  label = adapters['label'](Tokens(values=jnp.array([[0], [1]])))
  assert image.shape == (2, 35, 16) and label.shape == (2, 1, 16)
  np.testing.assert_array_equal(image[..., 14:], np.broadcast_to(adapters['image'].padding[...], (2, 35, 2)))
  assert adapters['label'].padding.shape == (5,)
  with pytest.raises(ValueError, match="exceed that of every modality, 14 for 'image'; got 14"):
    ModalityAdaptersConfig(modalities=(('image', position),), num_channels=14)
