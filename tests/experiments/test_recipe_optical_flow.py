"""The recipe of the flow notebook: what it feeds, what its untrained model says, and that it learns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.capture import capture_attention
from perceiver_lib.data.optical_flow import load_optical_flow
from perceiver_lib.experiments.recipes.optical_flow import (
  RECIPES,
  ReadFlow,
  flow_baselines,
  flow_model,
  mean_error,
  predicted_flow,
  standardised,
  train_flow,
)

RECIPE = RECIPES['smoke']
READS = [ReadFlow(), ReadFlow(concatenate_frames=False), ReadFlow(ask_by_position=True)]


@pytest.fixture(scope='module')
def data():
  return load_optical_flow(size=RECIPE.size, held_out_pairs=RECIPE.held_out_pairs)


@pytest.fixture(scope='module')
def pairs(data):
  return {name: np.asarray(value) for name, value in data.validation.batch(0, RECIPE.held_out_pairs).items()}


@pytest.mark.parametrize('read', READS)
def test_the_untrained_model_says_that_nothing_moves(read, pairs):
  flow = predicted_flow(read, flow_model(RECIPE, read, seed=0), pairs['frames'], batch_size=4)
  assert flow.shape == pairs['flow'].shape
  np.testing.assert_array_equal(flow, 0)


@pytest.mark.parametrize('read', READS)
def test_some_pixels_are_rows_of_all_pixels(read, pairs):
  model, frames, rows = flow_model(RECIPE, read, seed=0), pairs['frames'][:2], jnp.array([3, 200, 77])
  kernel = model.decoder.output.kernel
  kernel[...] = jax.random.normal(jax.random.key(0), kernel.shape)
  everything, some = read.outputs(model, frames), read.outputs(model, frames, rows)
  assert float(jnp.abs(everything).max()) > 0.1
  np.testing.assert_allclose(some, everything[:, rows], atol=1e-5)


def test_brightness_and_contrast_do_not_matter(pairs):
  frames = pairs['frames'][:2]
  plain, changed = standardised(frames), standardised(0.5 * frames + 40)
  np.testing.assert_allclose(np.mean(plain, axis=(1, 2, 3, 4)), 127.5, atol=0.05)
  np.testing.assert_allclose(np.std(plain, axis=(1, 2, 3, 4)), 127.5, rtol=0.25)
  # Pairs of almost one grey are not blown up, so a contrast below the 4 grey levels that guard it is damped.
  spread = np.std(frames, axis=(1, 2, 3, 4), keepdims=True)
  damped = (spread + 4) / (spread + 8)
  np.testing.assert_allclose(changed - 127.5, damped * (plain - 127.5), atol=0.05)


def test_latents_begin_as_a_grid_and_read_near_their_places(pairs):
  recipe = dataclasses.replace(RECIPE, num_latents=16, num_latent_channels=32)
  centres = {}
  for local in (True, False):
    model = flow_model(recipe, seed=0, local_start=local)
    _, maps = capture_attention(lambda frames, model=model: ReadFlow()(model, frames))(pairs['frames'][:1])
    weights = np.asarray(maps['encoder.cross_attention.0'].weights)[0].mean(0).reshape(4, 4, 16, 16)
    centres[local] = np.einsum('rcyx,y->r', weights, np.arange(16)) / 4
  steps = np.diff(centres[True])
  assert (steps[1:2] > 2).all() and (steps > 0.5).all()
  assert np.abs(np.diff(centres[False])).max() < 1


def test_a_short_training_beats_no_motion_on_its_own_easy_pairs(data, pairs):
  recipe = dataclasses.replace(RECIPE, num_latents=16, num_latent_channels=32, learning_rate=5e-3)
  few = dataclasses.replace(data.train, length=4)
  read = ReadFlow()
  result = train_flow(
    flow_model(recipe, seed=0), read, few, pairs, recipe=recipe, num_steps=150, seed=0, progress='silent'
  )
  seen = {name: np.asarray(value) for name, value in dataclasses.replace(few, ramp=0).batch(0, 4).items()}
  zero = float(np.linalg.norm(seen['flow'], axis=-1).mean())
  assert mean_error(read, result.model, seen) < 0.7 * zero
  assert set(result.history[-1]) >= {'validation_epe', 'train_epe_of_zero_flow'}


def test_baselines_know_what_they_may(pairs):
  flows = flow_baselines(pairs['frames'][:2], pairs['flow'][:2], np.full((3, 2), 1.5))
  assert list(flows) == ['zero flow', 'mean flow of training', 'best constant', 'TV-L1', 'iterative Lucas-Kanade']
  np.testing.assert_array_equal(flows['mean flow of training'][1, 5, 7], [1.5, 1.5])
  error = {name: np.linalg.norm(flow - pairs['flow'][:2], axis=-1).mean() for name, flow in flows.items()}
  assert error['best constant'] <= min(error['zero flow'], error['mean flow of training'])
