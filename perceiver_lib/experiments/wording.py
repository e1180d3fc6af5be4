"""How numbers and metrics are written for people, the same in notebooks, terminal, report and README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_number(value: float | str, unit: str = '') -> str:
  """Five significant digits, whole numbers with thousands separators, and the unit."""
  if isinstance(value, str):
    text = value
  elif float(value).is_integer() and abs(value) < 1e15:
    text = f'{int(value):,}'
  else:
    text = f'{value:,.2f}' if abs(value) >= 1000 else f'{value:.4g}'
  return f'{text} {unit}'.strip()


def describe_spread(median: float, smallest: float, largest: float, form: str = '.3g') -> str:
  """The median of several measurements, and in brackets the smallest and the largest."""
  return f'{median:{form}} ({smallest:{form}} to {largest:{form}})'


def describe_metric(record: Mapping[str, Any]) -> str:
  """A metric as one line: value, baseline, paper."""
  beside = []
  if record['baseline'] is not None:
    beside.append(f'{record["baseline"]} {describe_number(record["baseline_value"], record["unit"])}')
  if paper := describe_paper(record):
    beside.append(f'paper {paper}')
  line = f'{record["metric"]}  {describe_number(record["value"], record["unit"])}'
  return line + (f'   ({"; ".join(beside)})' if beside else '')


def describe_paper(record: Mapping[str, Any]) -> str:
  """The published value of a metric record, which is a number in its unit or words with their place; '' without one."""
  paper = record['paper']
  if paper is None:
    return ''
  return paper if isinstance(paper, str) else describe_number(paper, record['unit'])


def describe_band(band: Mapping[str, Any] | None) -> str:
  if band is None:
    return ''
  if band['min'] is None:
    return f'≤ {describe_number(band["max"])}'
  return f'≥ {describe_number(band["min"])}' if band['max'] is None else f'{band["min"]:g} – {band["max"]:g}'
