"""Augmentations move pixels where they say, leave images alone at zero, and differ between examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.data.augment import _affine, random_affine

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(1, 256, (13, 7, 11, 3)).astype(np.uint8)


def moved(image, down, right):
  """The image moved by whole pixels, zeros where it came from."""
  height, width = image.shape[:2]
  padded = np.pad(image, ((height, height), (width, width), (0, 0)))
  return padded[height - down : 2 * height - down, width - right : 2 * width - right]


@pytest.mark.parametrize('dtype', [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_nothing_asked_nothing_changed(dtype):
  images = jnp.asarray(IMAGES, dtype)
  same = random_affine(KEY, images)
  assert same.dtype == dtype
  np.testing.assert_array_equal(same, images)


def test_affine_shift_by_whole_pixels():
  zero, one = jnp.float32(0), jnp.float32(1)
  found = _affine(jnp.asarray(IMAGES[0]), zero, one, zero, jnp.array([2.0, -3.0], jnp.float32))
  np.testing.assert_array_equal(found, moved(IMAGES[0], 2, -3))


def test_affine_quarter_turn_zoom_and_shear():
  square = jnp.asarray(IMAGES[0, :, :7])
  zero, one, still = jnp.float32(0), jnp.float32(1), jnp.zeros(2, jnp.float32)
  turned = _affine(square, jnp.float32(jnp.pi / 2), one, zero, still)
  np.testing.assert_allclose(turned.astype(int), np.rot90(square, k=1).astype(int), atol=1)
  zoomed = _affine(square, zero, jnp.float32(2), zero, still)
  np.testing.assert_array_equal(zoomed[1::2, 1::2], square[2:5, 2:5])
  sheared = _affine(square, zero, one, one, still)
  np.testing.assert_array_equal(sheared[3], square[3])
  np.testing.assert_array_equal(sheared[5, 2:], square[5, :-2])
  np.testing.assert_array_equal(sheared[1, :-2], square[1, 2:])


@pytest.mark.parametrize(
  'amount', [{'max_degrees': 20.0}, {'max_scale': 1.3}, {'max_shear': 0.3}, {'max_shift': 1.5}], ids=str
)
def test_every_amount_acts_differently_on_every_image(amount):
  same = jnp.asarray(np.repeat(IMAGES[:1], 5, axis=0))
  changed = np.asarray(jax.jit(lambda key, x: random_affine(key, x, **amount))(KEY, same))
  assert len(np.unique(changed.reshape(5, -1), axis=0)) == 5
  assert not np.array_equal(changed, random_affine(jax.random.key(1), same, **amount))


def test_too_small_a_zoom_is_refused():
  with pytest.raises(ValueError, match=r'max_scale must be a number in \[1, inf\); got 0.9'):
    random_affine(KEY, jnp.asarray(IMAGES), max_scale=0.9)
