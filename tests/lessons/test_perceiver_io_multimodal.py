"""What notebook 04 measures, on answers whose scores are known; who is not there reaches nobody."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig
from perceiver_lib.baselines.clips import class_means, linear_accuracy, linear_codes, nearest
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.lessons import perceiver_io_multimodal as lesson
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import LearnedQueries, PositionQueries

RANDOM = np.random.default_rng(5)
MEAN = np.zeros((32, 32), np.float32)


@pytest.fixture(scope='module')
def clips():
  return {
    'video': RANDOM.random((6, *lesson.SHAPE), np.float32),
    'noisy': RANDOM.standard_normal((6, 32, 32), np.float32),
    'sound': RANDOM.standard_normal((6, 32, 32), np.float32),
    'label': np.array([0, 3, 1, 3, 2, 9], np.int32),
  }


@pytest.fixture(scope='module')
def model():
  space, moment = (FourierFeatures(num_bands=1, max_resolution=(4,) * axes) for axes in (3, 1))
  modalities = {
    'label': EmbeddingAdapterConfig(num_embeddings=11, num_channels=8),
    'sound': FeatureAdapterConfig(num_values=32, num_projected_channels=8, position=moment),
    'video': FeatureAdapterConfig(num_values=32, num_projected_channels=8, position=space),
  }
  queries = {
    'label': LearnedQueries(num_queries=1, num_channels=4),
    'sound': PositionQueries(position=moment),
    'video': PositionQueries(position=space),
  }
  layer = LayerConfig(num_heads=1)
  config = PerceiverIOConfig(
    input_adapter=ModalityAdaptersConfig(modalities=tuple(modalities.items()), num_channels=24),
    num_latents=2,
    num_latent_channels=8,
    num_self_attends_per_block=1,
    cross_attend=layer,
    self_attend=layer,
    decoder=DecoderConfig(
      queries=ModalityAdaptersConfig(modalities=tuple(queries.items()), num_channels=16),
      num_outputs=16,
      heads=(('label', 10), ('sound', 32), ('video', 32)),
    ),
  )
  return PerceiverIO(config, rngs=nnx.Rngs(0))


def test_what_is_not_there_changes_nothing_and_foreign_latents_are_the_next_clips(model, clips):
  def ask(changed=None, **given):
    return lesson.answers(model, clips | (changed or {}), batch_size=6, **given)

  plain, deaf, blind = ask(), ask(heard=False), ask(seen=False)
  for name in plain:
    np.testing.assert_array_equal(ask({'noisy': 0 * clips['noisy']}, heard=False)[name], deaf[name])
    np.testing.assert_array_equal(ask({'video': 0 * clips['video']}, seen=False)[name], blind[name])
    assert np.abs(deaf[name] - plain[name]).max() > 1e-5 < np.abs(blind[name] - plain[name]).max()
    np.testing.assert_allclose(ask(foreign=True)[name], np.roll(plain[name], -1, axis=0), atol=1e-6)
  relabelled = {'label': (clips['label'] + 1) % 10}
  np.testing.assert_array_equal(ask(relabelled)['video'], plain['video'])
  assert np.abs(ask(relabelled, told=True)['video'] - ask(told=True)['video']).max() > 1e-6


def test_scores_of_known_answers(clips):
  truth = {'video': clips['video'] + 0.1, 'sound': 0.5 * clips['sound'], 'label': np.eye(10)[[0, 3, 1, 3, 2, 8]]}
  found = lesson.scores(truth, clips, MEAN)
  assert found == pytest.approx({'video': 20.0, 'sound': 20 * np.log10(2), 'label': 500 / 6}, rel=1e-4)
  assert lesson.sound_score(np.broadcast_to(MEAN, clips['sound'].shape), clips, MEAN) == pytest.approx(0)
  assert lesson.numbers_matched(3.0, {1: 0.5, 2: 2.9, 4: 3.1}) == 2 and lesson.numbers_matched(0.1, {1: 0.5}) == 0
  assert lesson.one_of_each(clips['label'], (3, 9)) == [1, 5]
  assert lesson.comparison({'a': {'video': 1.0}}).rows == [['a', '1.00', '–', '–']]


def test_blocks_asked_for_are_the_blocks_of_the_video(clips):
  targets = lesson.block_targets(jax.tree.map(jnp.asarray, clips), jnp.array([17]))
  # Second pair of frames, first row, second column of blocks.
  np.testing.assert_array_equal(targets[:, 0], clips['video'][:, 2:4, 0:4, 4:8].reshape(6, -1))


def test_rules_find_what_is_linear():
  factors = RANDOM.standard_normal((80, 3)).astype(np.float32)
  inputs = factors @ RANDOM.standard_normal((3, 7)).astype(np.float32) + 2
  targets = factors @ RANDOM.standard_normal((3, 5)).astype(np.float32) - 1
  codes = linear_codes(inputs, targets, inputs, [1, 3], penalty=1e-3)
  np.testing.assert_allclose(codes[3], targets, atol=0.01)
  assert np.linalg.matrix_rank(codes[1] - targets.mean(0), tol=1e-2) == 1
  labels = (factors[:, 0] > 0).astype(np.int64)
  assert linear_accuracy(factors, labels, factors, labels) > 0.9
  np.testing.assert_array_equal(nearest(inputs, inputs[5:8]), [5, 6, 7])
  np.testing.assert_allclose(class_means(targets, labels)[1], targets[labels == 1].mean(0))
