"""This library beside what a user would pick instead: reads what `python -m perceiver_lib bench` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.files import project_root, read_json
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.wording import describe_spread

OURS = 'perceiver_lib'
PEERS = ('Hugging Face', 'krasserm perceiver-io 0.11', 'lucidrains')
"""Packages. Other contenders of a case are its parts, or this library with other settings."""
Results = Mapping[str, Mapping[str, Any]]


def committed_results(path: Path | None = None) -> Results:
  """What the bench command wrote on some machine at some time, by case: `figures/bench.json` unless given."""
  return read_json(path or project_root() / 'figures' / 'bench.json') or {}


def ratios(results: Results) -> dict[str, tuple[str, list[float]]]:
  """Name of a bar -> 'time' or 'peak memory', and ours over theirs (median, smallest, largest, or one number)."""
  bars: dict[str, tuple[str, list[float]]] = {}
  for case, peer, row in _peers(results):
    if 'ratio' in row:
      time = [row['ratio'][which] for which in ('median', 'smallest', 'largest')]
      memory = results[case]['contenders'][OURS]['peak_gigabytes'] / row['peak_gigabytes']
      bars[f'{case}, {peer}: time'] = ('time', time)
      bars[f'{case}, {peer}: memory'] = ('peak memory of the process', [memory])
  return bars


def table(results: Results) -> Table:
  """A row for each peer of each case: seconds and gigabytes of both, or why there are none, and the machine's stamp."""
  rows = []
  for case, peer, row in _peers(results):
    ours, stamp = results[case]['contenders'][OURS], results[case]['stamp']
    when = f'{stamp["time"]}, {stamp["device"]}'
    if 'ratio' not in row:
      rows.append((case, peer, row.get('status', ours.get('status')), '', '', when))
      continue
    seconds = f'{ours["median_seconds"]:.3g} / {row["median_seconds"]:.3g}'
    memory = f'{ours["peak_gigabytes"]:.2f} / {row["peak_gigabytes"]:.2f}'
    rows.append((case, peer, seconds, describe_spread(**row['ratio'], form='.2f'), memory, when))
  return Table(('case', 'peer', 'seconds, ours / theirs', 'ratio (spread)', 'GB, ours / theirs', 'measured'), rows)


def _peers(results: Results) -> list[tuple[str, str, Mapping[str, Any]]]:
  """Without the account of a step, whose row of a peer is in the plain case already."""
  return [
    (case, peer, row)
    for case, result in results.items()
    if OURS in result['contenders'] and not case.startswith('matmul-account')
    for peer, row in result['contenders'].items()
    if peer in PEERS
  ]
