"""One measured number as the record that everything reads: beside the strongest of what it must be compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.wording import describe_number, describe_paper


def metric_record(
  name: str,
  value: Any,
  unit: str,
  *,
  baselines: Mapping[str, Any] | None,
  best: Callable | None,
  paper: float | str | None,
) -> dict[str, Any]:
  """The record of a metric; the arguments are those of `run.Run.log`.

  Raises:
    RequestError: for something that is no number, or several baselines without `best`.
  """
  baselines = {words: _number(number, f'{name} baseline') for words, number in (baselines or {}).items()}
  if best not in (None, max, min) or (best is None and len(baselines) > 1):
    raise RequestError(f'Metric {name!r} has several baselines; say best=max or best=min: which is the strongest.')
  # One that is no finite number is never the strongest.
  usable = {words: number for words, number in baselines.items() if math.isfinite(number)} or baselines
  strongest = (best or max)(usable, key=usable.get) if usable else None
  return {
    'metric': name,
    'value': _as_json(_number(value, name)),
    'unit': unit,
    'baseline': strongest,
    'baseline_value': None if strongest is None else _as_json(baselines[strongest]),
    'baselines': {words: _as_json(number) for words, number in baselines.items()},
    'paper': paper,
  }


def as_row(record: Mapping[str, Any]) -> list[str]:
  """A metric, its value, each of its baselines, the strongest first, and the paper's value, in words."""
  others = sorted(record['baselines'].items(), key=lambda item: item[0] != record['baseline'])
  return [
    record['metric'].replace('_', ' '),
    describe_number(record['value'], record['unit']),
    '; '.join(f'{describe_number(number, record["unit"])} {words}' for words, number in others) or '–',
    describe_paper(record) or '–',
  ]


def _number(value: Any, name: str) -> float | int:
  try:
    if isinstance(value, bool | str):
      raise TypeError
    return value if isinstance(value, int) else float(value)
  except (TypeError, ValueError):
    raise RequestError(f'Metric {name!r} must be one real number; got {type(value).__name__}: {value!r:.60}.') from None


def _as_json(value: float) -> float | str:
  return value if math.isfinite(value) else str(float(value))
