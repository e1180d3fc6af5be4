"""Reads what the bench command wrote: this library over the packages beside it, with words in place of case names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.bench.long_inputs import LENGTHS
from perceiver_lib.experiments.files import project_root
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.wording import describe_spread
from perceiver_lib.files import read_json

OURS = 'perceiver_lib'
PEERS = ('Hugging Face', 'krasserm perceiver-io 0.11', 'lucidrains')
"""Packages. Other contenders of a case are its parts, or this library with other settings."""
Results = Mapping[str, Mapping[str, Any]]

_WORDS = {
  'language': 'byte language model, 201M parameters: forward',
  'language-train': 'byte language model, 201M parameters: training',
  'flow': 'optical flow of one pair, 41M parameters: forward',
  'ar-train': 'Perceiver AR on 2,048 tokens: training',
  'ar-generate': 'Perceiver AR: 256 tokens generated',
  'ar-copy-131072': 'Perceiver AR on 131,072 tokens: training',
}
_WORDS |= {
  f'{size}-{length}{ending}': f'{num_bytes:,} {size} inputs: {words}'
  for size in ('wide', 'narrow')
  for length, num_bytes in LENGTHS.items()
  for ending, words in (('', 'forward'), ('-train', 'training'))
}
_WITHOUT_CACHE = ('ar-generate', 'lucidrains')


def committed_results(path: Path | None = None) -> Results:
  """What was measured on some machine at some time, by case: `figures/bench.json` unless given."""
  return read_json(path or project_root() / 'figures' / 'bench.json') or {}


def ratios(results: Results) -> dict[str, dict[str, list[float]]]:
  """Case and peer in words -> 'time' and 'peak memory', each ours over theirs: median, smallest and largest, or one.

  Without the generation of the package that has no cache: its ratio is that of a cache, not of two implementations.
  """
  rows: dict[str, dict[str, list[float]]] = {}
  for case, peer, row in _peers(results):
    if 'ratio' in row and (case, peer) != _WITHOUT_CACHE:
      memory = results[case]['contenders'][OURS]['peak_gigabytes'] / row['peak_gigabytes']
      time = [row['ratio'][which] for which in ('median', 'smallest', 'largest')]
      rows[f'{in_words(case)}, {peer}'] = {'time': time, 'peak memory of the process': [memory]}
  return rows


def peers_table(results: Results) -> Table:
  """A row for each peer of each case: seconds and gigabytes of both, or why there are none, and the machine's stamp."""
  rows = []
  for case, peer, row in _peers(results):
    ours, stamp = results[case]['contenders'][OURS], results[case]['stamp']
    when = f'{stamp["time"]}, {stamp["device"]}'
    name = f'{peer} (no cache)' if (case, peer) == _WITHOUT_CACHE else peer
    if 'ratio' not in row:
      rows.append((in_words(case), name, row.get('status', ours.get('status')), '', '', when))
      continue
    seconds = f'{ours["median_seconds"]:.3g} / {row["median_seconds"]:.3g}'
    memory = f'{ours["peak_gigabytes"]:.2f} / {row["peak_gigabytes"]:.2f}'
    rows.append((in_words(case), name, seconds, describe_spread(**row['ratio'], form='.2f'), memory, when))
  return Table(('case', 'peer', 'seconds, ours / theirs', 'ratio (spread)', 'GB, ours / theirs', 'measured'), rows)


def in_words(case: str) -> str:
  """'wide-64k-train (this run)' -> '65,536 wide inputs: training (this run)'; a case without words keeps its name."""
  name, *note = case.split(' ', 1)
  return ' '.join([_WORDS.get(name, name), *note])


def _peers(results: Results) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
  """Without the account of a step, whose row of a peer is in the plain case already."""
  for case, result in results.items():
    if OURS in result['contenders'] and not case.startswith('matmul-account'):
      for peer, row in result['contenders'].items():
        if peer in PEERS:
          yield case, peer, row
