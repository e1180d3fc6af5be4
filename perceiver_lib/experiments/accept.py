"""Accepting runs: their results are published, their place in the history is kept, and measured bands follow the seeds.

A band is either argued, and then only a person changes it, or measured: then its reason begins with `measured:`, and
its ends are the median of the accepted seeds, of which there must be two or more, and three times their spread to each
side that the band bounds.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.bands import FILE_NAME as BANDS_FILE
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import accepted_manifests, read_records, write_json, write_text
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.experiments.results import publish, result_records
from perceiver_lib.files import finite, read_json

MEASURED = 'measured:'
SPREADS = 3
LEAST_WIDTH = 0.02
"""Of the median, where the seeds agree."""

ENTRY = {
  'date': str,
  'commit': str,
  'device': str,
  'profile': PROFILES.__contains__,
  'notebook': str,
  'metric': str,
  'values': [finite],
  'seeds': [int],
  'reason': str,
}


def history_file(root: Path) -> Path:
  return root / 'figures' / 'history.jsonl'


def read_history(root: Path) -> dict[tuple[str, str, str], list[float]]:
  """Medians of the accepted runs, oldest first, by notebook, profile and metric."""
  history: dict[tuple[str, str, str], list[float]] = {}
  for entry in read_records(history_file(root), ENTRY):
    key = entry['notebook'], entry['profile'], entry['metric']
    history.setdefault(key, []).append(statistics.median(entry['values']))
  return history


def accept(runs: Sequence[Path], root: Path, *, reason: str) -> tuple[list[str], list[str]]:
  """Publishes the first run and records all of them, one a seed.

  Args:
    runs: folders of complete runs of the same notebooks and profile with different seeds.
    root: the project.
    reason: why these runs are accepted, in words; it stands in the history and in the bands.

  Returns:
    The names of the figure files that were written, and of the bands that changed, as 'notebook/metric'.

  Raises:
    RequestError, DamagedFile: as `results.publish`, or if the runs do not belong together. Nothing has been written.
  """
  if not reason.strip():
    raise RequestError('Say with --reason why the run is accepted: a sentence for whoever asks later.')
  by_run = [accepted_manifests(run) for run in runs]
  asked = [{(name, manifest['profile']) for name, manifest in manifests.items()} for manifests in by_run]
  if any(one != asked[0] for one in asked):
    raise RequestError('Runs that are accepted together must be of the same notebooks and profile.')
  for name, manifest in by_run[0].items():
    others = [manifests[name] for manifests in by_run[1:]]
    for what, found in (('metrics', lambda one: set(one['metrics'])), ('commit and device', _stamp)):
      if any(found(other) != found(manifest) for other in others):
        raise RequestError(f'Runs that are accepted together must have the same {what}; those of {name} differ.')
  load_declarations(root / 'notebooks' / BANDS_FILE)
  entries = [_entry(name, metric, by_run, reason) for name in by_run[0] for metric in by_run[0][name]['metrics']]
  if any(len(set(entry['seeds'])) < len(runs) for entry in entries):
    raise RequestError('Runs that are accepted together must have different seeds.')

  written = publish(runs[0], root)
  path = history_file(root)
  earlier = ''.join(json.dumps(entry, ensure_ascii=False) + '\n' for entry in read_records(path, ENTRY))
  write_text(path, earlier + ''.join(json.dumps(entry, ensure_ascii=False) + '\n' for entry in entries))
  return written, _renew_bands(root / 'notebooks' / BANDS_FILE, entries) if len(runs) > 1 else []


def _stamp(manifest: Mapping[str, Any]) -> dict[str, str]:
  return {name: record for name, record in result_records(manifest)[0].items() if name in ('commit', 'device')}


def _entry(name: str, metric: str, by_run: Sequence[Mapping[str, Any]], reason: str) -> dict[str, Any]:
  manifests = [manifests[name] for manifests in by_run]
  values = [manifest['metrics'][metric]['value'] for manifest in manifests]
  return {
    'date': f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d}',
    **_stamp(manifests[0]),
    'profile': manifests[0]['profile'],
    'notebook': name,
    'metric': metric,
    'values': values,
    'seeds': [manifest['seed'] for manifest in manifests],
    'reason': reason,
  }


def _renew_bands(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[str]:
  content, renewed = read_json(path), []
  for entry in entries:
    metrics = content.get(entry['notebook'], {}).get('metrics', {})
    band = metrics.get(entry['metric'], {}).get(entry['profile'])
    if band is None or not band['reason'].startswith(MEASURED):
      continue
    metrics[entry['metric']][entry['profile']] = measured_band(
      entry, sides=[side for side in ('min', 'max') if band.get(side) is not None]
    )
    renewed.append(f'{entry["notebook"]}/{entry["metric"]}')
  if renewed:
    write_json(path, content)
  return renewed


def measured_band(entry: Mapping[str, Any], sides: Sequence[str]) -> dict[str, Any]:
  """The band that an entry of the history gives to a metric, bounded on the sides ('min', 'max') that are named."""
  values = entry['values']
  median = statistics.median(values)
  width = max(SPREADS * (max(values) - min(values)), LEAST_WIDTH * abs(median))
  ends = {'min': float(f'{median - width:.4g}'), 'max': float(f'{median + width:.4g}')}
  seeds = ', '.join(map(str, entry['seeds']))
  reason = (
    f'{MEASURED} {median:.4g} ({min(values):.4g} to {max(values):.4g}) of seeds {seeds} at {entry["commit"]}, '
    f'{entry["device"]}, {entry["date"]}; {entry["reason"]}'
  )
  return {side: ends[side] for side in ends if side in sides} | {'reason': reason}
