"""Decibels of pooled errors, on errors whose ratio is known."""

import numpy as np
import pytest

from perceiver_lib.scores.signals import decibels


def test_decibels_of_known_errors():
  assert decibels(255.0**2, 255.0**2) == 0
  assert decibels(1.0, 0.01) == pytest.approx(20)
  assert decibels(1.0, 0.0) == np.inf
