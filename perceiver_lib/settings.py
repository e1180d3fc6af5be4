"""The one check of settings that are numbers; NaN, which is neither below nor above a bound, fails like any other."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_counts(settings: Any, *names: str, least: int = 1) -> None:
  """Raises a ValueError that names the first setting which is no whole number from `least` on.

  Args:
    settings: a config, or a dict of settings. None is left out; every entry of a tuple counts, and there must be one.
  """
  for name, value in _values(settings, names):
    for entry in (value or (0.5,)) if isinstance(value, tuple | list) else (value,):
      if not isinstance(entry, numbers.Integral) or isinstance(entry, bool) or entry < least:
        raise ValueError(f'{name} must be whole, {least} or more; got {value!r}.')


def check_numbers(settings: Any, *names: str, least: float = -math.inf, below: float = math.inf) -> None:
  """Raises a ValueError that names the first setting which is not finite or not in [least, below); None is left out."""
  for name, value in _values(settings, names):
    if not (isinstance(value, numbers.Real) and math.isfinite(value) and least <= value < below):
      raise ValueError(f'{name} must be a number in [{least}, {below}); got {value!r}.')


def _values(settings: Any, names: tuple[str, ...]) -> list[tuple[str, Any]]:
  values = settings if isinstance(settings, dict) else {name: getattr(settings, name) for name in names}
  return [(name, value) for name, value in values.items() if value is not None]
