from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.lessons import images as recipe_of
from perceiver_lib.models.perceiver import Perceiver

RECIPE = recipe_of.RECIPES['smoke']
SHAPE = (8, 8, 1)


def examples(count: int, seed: int = 0) -> dict[str, np.ndarray]:
  random = np.random.default_rng(seed)
  return {
    'image': random.integers(0, 256, (count, *SHAPE), dtype=np.uint8),
    'label': random.integers(0, 3, count, dtype=np.int32),
  }


def test_permuting_pixels_moves_layout_models_and_not_the_perceiver():
  order = tuple(np.random.default_rng(1).permutation(64).tolist())
  batch = examples(5)['image']
  perceiver = Perceiver(recipe_of.image_perceiver(RECIPE, SHAPE, 3), rngs=nnx.Rngs(0))
  views = [recipe_of.ReadPixels(), recipe_of.ReadPixels(order=order)]
  raw, shuffled = (np.asarray(jax.jit(view)(perceiver, batch)) for view in views)
  assert np.abs(raw - shuffled).max() < 1e-5
  for model in recipe_of.layout_models(SHAPE, 3, seed=0).values():
    views = [recipe_of.ReadPositioned(), recipe_of.ReadPositioned(order)]
    raw, shuffled = (np.asarray(jax.jit(view)(model, batch)) for view in views)
    assert np.abs(raw - shuffled).max() > 1e-3


def test_images_are_halved_by_means_and_stretched_to_the_full_range():
  image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
  half = recipe_of.shrunk({'image': image, 'label': np.zeros(1, np.int32)})
  assert half['image'][0, :, :, 0].tolist() == [[2, 4], [10, 12]]  # 2.5, 4.5, 10.5 and 12.5, rounded to even
  stretched = recipe_of.full_range({'image': image, 'label': np.zeros(1, np.int64)})
  assert stretched['image'].max() == 255 and stretched['label'].dtype == np.int32


def test_the_main_training_is_repeatable_and_reports_both_splits():
  data = {name: examples(20, seed) for seed, name in enumerate(('train', 'validation', 'test'))}
  first, second = (
    recipe_of.main_training(data, recipe=RECIPE, seed=3, patch_size=2, progress='silent') for _ in range(2)
  )
  for name in ('validation_accuracy', 'test_accuracy'):
    assert first[name] == second[name]
    assert 0 <= first[name] <= 100
  assert first['train_steps'] == RECIPE.patch_train_steps


def test_classical_baselines_learn_what_is_easy():
  easy = examples(60)
  easy['image'][:] = (80 * easy['label'])[:, None, None, None]
  assert all(value == pytest.approx(100) for value in recipe_of.classical_baselines(easy, easy).values())
