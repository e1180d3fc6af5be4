"""How near pictures and sounds come to the truth, in decibels of an error pooled over all of their values."""

from __future__ import annotations

import math


def decibels(power: float, mean_squared_error: float) -> float:
  """10 log10(power / error); a perfect copy has infinity.

  With the square of the largest value as the power it is the peak signal-to-noise ratio (PSNR); with the mean squared
  distance from the mean of all signals, that mean has 0 dB. The mean of the ratios of single signals is another number.
  """
  return math.inf if mean_squared_error == 0 else 10 * math.log10(power / mean_squared_error)
