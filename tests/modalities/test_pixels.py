from __future__ import annotations

import numpy as np

from perceiver_lib.modalities.pixels import imagenet_image


def test_a_photograph_is_cropped_to_its_middle_resized_and_normalised():
  photograph = np.zeros((16, 24, 3), np.uint8)
  photograph[1:15, 5:19] = (255, 0, 51)  # 7/8 of 16 = 14 pixels in the middle
  found = imagenet_image(photograph, size=7)
  assert found.shape == (7, 7, 3) and found.dtype == np.float32
  expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
  np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-6)


def test_resized_colours_stay_whole_numbers_from_0_to_255():
  stripes = np.zeros((32, 32, 3), np.uint8)
  stripes[:, ::3] = 255
  found = imagenet_image(stripes, size=51)[..., 0] * 0.229 + 0.485
  np.testing.assert_allclose(255 * found, np.rint(255 * found), atol=1e-4)
  assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
