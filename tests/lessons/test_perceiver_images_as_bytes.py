from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from perceiver_lib.lessons import perceiver_images_as_bytes as lesson
from perceiver_lib.modalities.pixels import pixel_adapter
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig

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
  perceiver = Perceiver(PerceiverConfig.tiny(pixel_adapter(SHAPE, num_bands=4), 3), rngs=nnx.Rngs(0))
  views = [lesson.ReadPixels(), lesson.ReadPixels(order=order)]
  raw, shuffled = (np.asarray(jax.jit(view)(perceiver, batch)) for view in views)
  assert np.abs(raw - shuffled).max() < 1e-5
  for model in lesson.layout_models(SHAPE, 3, seed=0).values():
    views = [lesson.ReadPositioned(), lesson.ReadPositioned(order)]
    raw, shuffled = (np.asarray(jax.jit(view)(model, batch)) for view in views)
    assert np.abs(raw - shuffled).max() > 1e-3
