from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from perceiver_lib.lessons import perceiver_images_as_bytes as lesson
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


def test_another_order_of_the_pixels_moves_picture_models_and_not_the_perceiver():
  adapter = pixel_adapter(SHAPE, num_bands=4)
  models = {'Perceiver': Perceiver(PerceiverConfig.tiny(adapter, 3), rngs=nnx.Rngs(0))}
  models |= lesson.picture_models(adapter, SHAPE, 3, seed=0)
  order = np.random.default_rng(1).permutation(64)
  for name, model in models.items():
    run = jax.jit(lambda model: model(pixel_tokens(jnp.asarray(IMAGES))))
    raw, shuffled = (np.asarray(run(lesson.InOrder(model, order))) for order in (np.arange(64), order))
    moved = np.abs(raw - shuffled).max()
    assert moved < 1e-5 if name == 'Perceiver' else moved > 1e-3, name


def test_every_row_of_bytes_is_a_file_of_its_image():
  splits = {'train': {'image': IMAGES[:3], 'label': np.arange(3)}, 'test': {'image': IMAGES[3:], 'label': np.arange(2)}}
  for encode in (lesson.bmp, lambda image: lesson.png(image, 0), lambda image: lesson.png(image, 9)):
    files = lesson.as_files(splits, encode, length=400)
    rows = np.concatenate([files['train']['image'], files['test']['image']])
    assert rows.shape == (5, 400)
    for row, image in zip(rows, IMAGES, strict=True):
      end = int((row >= 0).sum())
      assert (row[end:] == -1).all()
      decoded = Image.open(io.BytesIO(row[:end].astype(np.uint8).tobytes())).convert('L')
      assert (np.asarray(decoded) == image[..., 0]).all()
  assert lesson.bytes_changed(IMAGES, lesson.bmp) == 3
  assert lesson.bytes_changed(IMAGES, lambda image: lesson.png(image, 0)) <= 1 + 4 + 4  # and two checksums


def test_noise_stays_within_its_square():
  noisy = lesson.patch_of_noise(IMAGES, 3)
  changed = (noisy != IMAGES)[..., 0]
  assert changed.any((1, 2)).all()
  for of_image in changed:
    rows, columns = np.flatnonzero(of_image.any(1)), np.flatnonzero(of_image.any(0))
    assert np.ptp(rows) < 3
    assert np.ptp(columns) < 3
