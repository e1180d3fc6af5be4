"""The recipe of the flow notebook: what it feeds, what its untrained model says, and that it learns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.data.optical_flow import load_optical_flow
from perceiver_lib.lessons.optical_flow import (
  RECIPES,
  ReadFlow,
  flow_baselines,
  flow_model,
  mean_error,
  predicted_flow,
  standardised,
  train_flow,
)
from perceiver_lib.modalities.optical_flow import flow_inputs
from perceiver_lib.tokens import Tokens
from tests.support import compiled

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
  everything, some = compiled(read.outputs, model, frames), compiled(read.outputs, model, frames, rows)
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


@pytest.mark.parametrize('read', READS[:2])
def test_latents_see_every_pixel_of_every_second_row_and_column(read):
  numbers = np.arange(128)
  frames = np.broadcast_to(numbers.reshape(1, 2, 8, 8, 1), (1, 2, 8, 8, 3)).astype(np.uint8)
  whole = Tokens(
    values=flow_inputs(frames, concatenate_frames=read.concatenate_frames), position=read.inputs(frames).position
  )
  seen = read.seen(whole, 8, 8)
  assert 4 * seen.num_tokens == whole.num_tokens
  assert set(numbers) <= set(np.rint((np.asarray(seen.values).ravel() + 1) * 127.5))


def test_a_short_training_fits_a_few_pairs(data, pairs):
  recipe = dataclasses.replace(RECIPE, num_latents=16, num_latent_channels=64, num_cross_heads=4, ramp_fraction=0.0)
  few = dataclasses.replace(data.train, length=4)
  read = ReadFlow()
  result = train_flow(
    flow_model(recipe, seed=0), read, few, pairs, recipe=recipe, num_steps=150, seed=0, progress='silent'
  )
  seen = {name: np.asarray(value) for name, value in few.batch(0, 4).items()}
  assert mean_error(read, result.model, seen) < 0.8 * np.linalg.norm(seen['flow'], axis=-1).mean()
  assert set(result.history[-1]) >= {'validation_epe', 'train_epe_of_zero_flow'}


def test_baselines_know_what_they_may(pairs):
  flows = flow_baselines(pairs['frames'][:2], pairs['flow'][:2], np.full((3, 2), 1.5))
  assert list(flows) == ['zero flow', 'mean flow of training', 'best constant', 'TV-L1', 'iterative Lucas-Kanade']
  np.testing.assert_array_equal(flows['mean flow of training'][1, 5, 7], [1.5, 1.5])
  error = {name: np.linalg.norm(flow - pairs['flow'][:2], axis=-1).mean() for name, flow in flows.items()}
  assert error['best constant'] <= min(error['zero flow'], error['mean flow of training'])
