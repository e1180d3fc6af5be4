"""Videos become patches and come back, sounds too become patches; a patch knows its place."""

import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.modalities import audio, video

RANDOM = np.random.default_rng(7)


def test_videos_come_back_from_patches():
  frames = RANDOM.integers(0, 256, (2, 6, 10, 21, 3), dtype=np.uint8)
  patches = video.video_patches(frames, (2, 5, 7))
  assert patches.shape == (2, 3 * 2 * 3, 2 * 5 * 7 * 3) and patches.dtype == np.uint8
  np.testing.assert_array_equal(video.video_from_patches(patches, (6, 10, 21, 3), (2, 5, 7)), frames)
  # Patch 10 is the second group of frames, second row, second column.
  np.testing.assert_array_equal(patches[1, 10], frames[1, 2:4, 5:10, 7:14].reshape(-1))


def test_tokens_know_their_place():
  frames = jnp.asarray(RANDOM.integers(0, 256, (2, 3, 4, 6, 3), dtype=np.uint8))
  tokens = video.video_tokens(frames, (1, 2, 2)).checked()
  assert tokens.values.shape == (2, 18, 12) and tokens.values.dtype == jnp.uint8
  np.testing.assert_allclose(tokens.position[0, [0, 1, 3, 17]], [[-1, -1, -1], [-1, -1, 0], [-1, 1, -1], [1, 1, 1]])
  # -1 + 2 i / n along each axis of n cells.
  queries = video.video_positions((3, 4, 6), (1, 2, 2), end_points=False)
  np.testing.assert_allclose(queries[[0, 17]], [[-1, -1, -1], [1 / 3, 0, 1 / 3]], atol=1e-6)


def test_videos_that_patches_do_not_tile_are_refused():
  with pytest.raises(ValueError, match=r'tiled by blocks of \(2, 2, 2\)'):
    video.video_patches(np.zeros((1, 3, 4, 4, 3)), (2, 2, 2))
  with pytest.raises(ValueError, match='has 8 patches of 24 values'):
    video.video_from_patches(np.zeros((1, 7, 24)), (4, 4, 4, 3), (2, 2, 2))


def test_sounds_become_patches():
  samples = RANDOM.normal(size=(3, 80)).astype(np.float32)
  patches = audio.audio_patches(samples)
  assert patches.shape == (3, 5, 16)
  np.testing.assert_array_equal(patches[2, 3], samples[2, 48:64])
  with pytest.raises(ValueError, match='a multiple of 16 samples'):
    audio.audio_patches(samples[:, :79])


def test_sound_tokens_know_their_place():
  tokens = audio.audio_tokens(jnp.zeros((2, 5328))).checked()
  assert tokens.values.shape == (2, 333, 16)
  np.testing.assert_allclose(tokens.position[0, [0, 166, 332], 0], [-1, 0, 1], atol=1e-6)
  queries = audio.audio_tokens(jnp.zeros((2, 32)), end_points=False)
  np.testing.assert_allclose(queries.position[0, :, 0], [-1, 0])
