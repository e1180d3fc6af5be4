"""Decibels of known errors, pooled before the logarithm."""

import numpy as np
import pytest

from perceiver_lib.scores.signals import psnr


def test_psnr_of_known_errors():
  assert psnr(255.0**2) == 0
  assert psnr(255.0**2 / 100) == pytest.approx(20)
  assert psnr(0) == np.inf
