"""What a notebook must show, declared once: `notebooks/bands.json` names its figures and metrics, and bounds those.

    {"01_perceiver_images_as_bytes": {
      "figures": ["learning_curve"],
      "metrics": {
        "test_accuracy": {"demo": {"min": 93, "max": 100, "reason": "three seeds: ..."}},
        "train_seconds": {}
      }}}

A metric without a band informs and never fails a run. Either bound may be left out; the reason may not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.files import finite, read_json

FILE_NAME = 'bands.json'
_NAME = re.compile(r'[a-z0-9][a-z0-9_]*')
_SHAPE = {str: {'figures': [str], 'metrics': {str: {str: {str: object}}}}}


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

  @classmethod
  def from_json(cls, entry: Mapping[str, Any]) -> Band:
    return cls(**{name: value for name, value in entry.items() if value is not None})

  def as_json(self) -> dict[str, float | str | None]:
    finite = {'min': self.min, 'max': self.max}
    bounds = {name: None if abs(bound) == float('inf') else bound for name, bound in finite.items()}
    return {**bounds, 'reason': self.reason}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
  """What one notebook must have shown when it ends.

  Attributes:
    figures: slugs.
    metrics: by name, the band of each profile that has one.
  """

  figures: tuple[str, ...]
  metrics: Mapping[str, Mapping[str, Band]]

  def judged(self, records: Mapping[str, Mapping[str, Any]], profile: str) -> dict[str, dict[str, Any]]:
    """Logged metrics by name, each with the profile's band and whether its value lies there, None without a band."""
    found = {}
    for name, record in records.items():
      band, value = self.metrics.get(name, {}).get(profile), record['value']
      within = None if band is None else not isinstance(value, str) and value in band
      found[name] = {**record, 'band': band and band.as_json(), 'in_band': within}
    return found

  def problems(
    self, judged: Mapping[str, Mapping[str, Any]], saved: Mapping[str, bool], *, bands_bind: bool
  ) -> list[str]:
    """What is missing or off, a sentence each; none = the notebook is complete.

    Args:
      judged: what `judged` says of the logged metrics.
      saved: by the slug of each figure, whether its files are there.
      bands_bind: whether a value outside its band is a problem.
    """
    found = [f'metric {name!r} was declared but not logged' for name in self.metrics if name not in judged]
    for name, record in judged.items():
      value = record['value']
      if isinstance(value, str):
        found.append(f'metric {name!r} is {value}, not a finite number')
      elif bands_bind and record['in_band'] is False:
        band = Band.from_json(record['band'])
        found.append(f'metric {name!r} is {value:.6g}, outside its band {band} ({band.reason})')
    for slug in self.figures:
      if slug not in saved:
        found.append(f'figure {slug!r} was declared but not saved')
      elif not saved[slug]:
        found.append(f'figure {slug!r} was saved but its file is gone')
    return found


def load_declarations(path: Path) -> dict[str, Declaration]:
  """Declarations by notebook; empty where there is no such file.

  Raises:
    DamagedFile: if the file is not JSON of this shape.
    RequestError: if an entry is malformed; the sentence names the entry.
  """
  content = read_json(path, _SHAPE) or {}
  return {notebook: _declaration(entry, f'{path.name}/{notebook}') for notebook, entry in content.items()}


def _declaration(entry: Mapping[str, Any], where: str) -> Declaration:
  if set(entry) != {'figures', 'metrics'}:
    raise RequestError(f'{where} must hold "figures" and "metrics", nothing else.')
  figures, metrics = entry['figures'], entry['metrics']
  for name in [*figures, *metrics]:
    if not _NAME.fullmatch(name):
      raise RequestError(f'{where} declares {name!r}; names are lower-case letters, digits and underscores.')
  if len(set(figures)) < len(figures):
    raise RequestError(f'{where} declares a figure twice: {figures}.')
  for name, by_profile in metrics.items():
    if unknown := sorted(set(by_profile) - set(PROFILES)):
      raise RequestError(f'{where}/{name} has a band for an unknown profile {unknown[0]!r}.')
  return Declaration(
    figures=tuple(figures),
    metrics={
      name: {profile: _band(band, f'{where}/{name}/{profile}') for profile, band in by_profile.items()}
      for name, by_profile in metrics.items()
    },
  )


def _band(entry: Mapping[str, object], where: str) -> Band:
  bounds = {name: entry[name] for name in ('min', 'max') if entry.get(name) is not None}
  reason = entry.get('reason')
  fits = all(map(finite, bounds.values())) and isinstance(reason, str) and reason.strip()
  if not bounds or not fits or set(entry) - {'min', 'max', 'reason'}:
    raise RequestError(f'Band {where} must hold min or max (numbers) and a reason; it holds {dict(entry)}.')
  band = Band.from_json({**{name: float(bound) for name, bound in bounds.items()}, 'reason': reason})
  if band.min > band.max:
    raise RequestError(f'Band {where} has min {band.min:g} above max {band.max:g}.')
  return band
