"""How near pictures come to the truth, in decibels of an error pooled over all of their values."""

from __future__ import annotations

import math


def psnr(mean_squared_error: float) -> float:
  """Peak signal-to-noise ratio in decibels of byte images, their error pooled over all pixels: 10 log10(255^2 / error).

  The mean of the ratios of single frames is another, larger number. A perfect copy has infinity.
  """
  return math.inf if mean_squared_error == 0 else 10 * math.log10(255.0**2 / mean_squared_error)
