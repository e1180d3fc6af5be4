"""Decibels of known errors, pooled before the logarithm."""

import numpy as np
import pytest

from perceiver_lib.scores.signals import psnr, signal_to_noise


def test_psnr_of_known_errors():
  assert psnr(255.0**2) == 0
  assert psnr(255.0**2 / 100) == pytest.approx(20)
  assert psnr(0) == np.inf


def test_signal_to_noise_is_pooled():
  assert signal_to_noise(1.0, 1.0) == 0
  assert signal_to_noise(0.1, 1.0) == pytest.approx(10)
  with pytest.raises(ValueError, match='needs a signal'):
    signal_to_noise(0.1, 0.0)
