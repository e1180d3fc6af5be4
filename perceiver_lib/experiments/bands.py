"""The committed bands that a metric must stay in: `notebooks/bands.json`, one entry a notebook, profile and metric.

    {"01_perceiver_images_as_bytes": {"demo": {"test_accuracy": {"min": 95, "max": 100, "reason": "three seeds: ..."}}}}

Either bound may be left out; the reason may not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.profiles import PROFILES

FILE_NAME = 'bands.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
  """The values of a metric that count as reproduced, ends included."""

  min: float = float('-inf')
  max: float = float('inf')
  reason: str

  def __contains__(self, value: float) -> bool:
    return self.min <= value <= self.max

  def __str__(self) -> str:
    if self.min == float('-inf'):
      return f'<= {self.max:g}'
    return f'>= {self.min:g}' if self.max == float('inf') else f'{self.min:g} to {self.max:g}'

  def as_json(self) -> dict[str, float | str | None]:
    finite = {'min': self.min, 'max': self.max}
    bounds = {name: None if abs(bound) == float('inf') else bound for name, bound in finite.items()}
    return {**bounds, 'reason': self.reason}


def load_bands(path: Path) -> Mapping[str, Mapping[str, Mapping[str, Band]]]:
  """Bands by notebook, profile and metric; empty where there is no such file.

  Raises:
    RequestError: if the file is not JSON or an entry is malformed; the sentence names the entry.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return {}
  except json.JSONDecodeError as error:
    raise RequestError(f'{path} is not JSON: {error}.') from None
  bands: dict[str, dict[str, dict[str, Band]]] = {}
  for notebook, by_profile in content.items():
    for profile, by_metric in by_profile.items():
      if profile not in PROFILES:
        raise RequestError(f'{path}: {notebook} has bands for an unknown profile {profile!r}.')
      for metric, entry in by_metric.items():
        bands.setdefault(notebook, {}).setdefault(profile, {})[metric] = _band(entry, f'{notebook}/{profile}/{metric}')
  return bands


def _band(entry: Mapping[str, object], where: str) -> Band:
  bounds = {name: entry[name] for name in ('min', 'max') if entry.get(name) is not None}
  numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds.values())
  if not bounds or not numbers or set(entry) - {'min', 'max', 'reason'} or not str(entry.get('reason', '')).strip():
    raise RequestError(f'Band {where} must hold min or max (numbers) and a reason; it holds {dict(entry)}.')
  band = Band(**{name: float(bound) for name, bound in bounds.items()}, reason=str(entry['reason']))
  if band.min > band.max:
    raise RequestError(f'Band {where} has min {band.min:g} above max {band.max:g}.')
  return band
