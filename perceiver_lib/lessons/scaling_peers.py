"""This library beside what a user would pick instead: reads what `python -m perceiver_lib bench` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.files import project_root, read_json

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


def markdown(results: Results) -> str:
  """A row for each peer of each case: seconds and gigabytes of both, or why there are none, and the machine's stamp."""
  lines = ['| case | peer | seconds, ours / theirs | ratio (spread) | GB, ours / theirs | measured |', '|' + '---|' * 6]
  for case, peer, row in _peers(results):
    ours, stamp = results[case]['contenders'][OURS], results[case]['stamp']
    when = f'{stamp["time"]}, {stamp["device"]}'
    if 'ratio' not in row:
      lines.append(f'| {case} | {peer} | {row.get("status", ours.get("status"))} | | | {when} |')
      continue
    seconds = f'{ours["median_seconds"]:.3g} / {row["median_seconds"]:.3g}'
    ratio = '{median:.2f} ({smallest:.2f} to {largest:.2f})'.format(**row['ratio'])
    memory = f'{ours["peak_gigabytes"]:.2f} / {row["peak_gigabytes"]:.2f}'
    lines.append(f'| {case} | {peer} | {seconds} | {ratio} | {memory} | {when} |')
  return '\n'.join(lines)


def _peers(results: Results) -> list[tuple[str, str, Mapping[str, Any]]]:
  """Without the account of a step, whose row of a peer is in the plain case already."""
  return [
    (case, peer, row)
    for case, result in results.items()
    if OURS in result['contenders'] and not case.startswith('matmul-account')
    for peer, row in result['contenders'].items()
    if peer in PEERS
  ]
