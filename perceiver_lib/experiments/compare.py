"""Runs side by side: the metrics of two and what differs in settings and environment, or the spread over many."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from perceiver_lib.experiments.files import open_run, read_notebook
from perceiver_lib.experiments.tables import literal, markdown
from perceiver_lib.experiments.wording import describe_number


def compare_runs(first: Path, second: Path) -> str:
  """A Markdown table with every metric of both runs, and every setting and fact of the environment that differs.

  Raises:
    RequestError, DamagedFile: as `files.open_run`. A damaged notebook has the status 'damaged' and nothing else.
  """
  records = [open_run(folder) for folder in (first, second)]
  rows = []
  for name in dict.fromkeys([*records[0]['notebooks'], *records[1]['notebooks']]):
    (metrics, facts), (other_metrics, other_facts) = (_facts(folder / name) for folder in (first, second))
    for label in dict.fromkeys([*metrics, *other_metrics]):
      pair = [side.get(label, ('–', '')) for side in (metrics, other_metrics)]
      numbers = [value for value, _ in pair if not isinstance(value, str)]
      difference = describe_number(numbers[1] - numbers[0], pair[0][1]) if len(numbers) == 2 else ''
      rows.append((name, label, *(describe_number(*side) for side in pair), difference))
    for label in dict.fromkeys([*facts, *other_facts]):
      pair = [side.get(label, '–') for side in (facts, other_facts)]
      if pair[0] != pair[1]:
        rows.append((name, label, *pair, 'differs'))
  header = ('notebook', 'metric or setting', str(first), str(second), 'second - first')
  return markdown([literal(name) for name in header], [[literal(cell) for cell in row] for row in rows])


def spread_over(runs: Sequence[Path]) -> str:
  """A Markdown table with the median, the smallest and the largest value of every metric over runs, such as seeds.

  Raises:
    RequestError, DamagedFile: as `files.open_run`.
  """
  rows = []
  names = dict.fromkeys(name for run in runs for name in open_run(run)['notebooks'])
  for name in names:
    found: dict[str, list[tuple[float | str, str]]] = {}
    for run in runs:
      for label, value in _facts(run / name)[0].items():
        found.setdefault(label, []).append(value)
    for label, pairs in found.items():
      numbers = [value for value, _ in pairs if not isinstance(value, str)]
      ends = [measure(numbers) for measure in (statistics.median, min, max)] if numbers else []
      rows.append((name, label, *(describe_number(end, pairs[0][1]) for end in ends or ('–',) * 3), str(len(numbers))))
  header = ('notebook', 'metric', 'median', 'smallest', 'largest', 'runs')
  return markdown(header, [[literal(cell) for cell in row] for row in rows])


def _facts(place: Path) -> tuple[dict[str, tuple[float | str, str]], dict[str, str]]:
  """Values with their units by metric; status, settings and environment in words."""
  result, manifest, problems = read_notebook(place)
  if problems or manifest is None:
    return {}, {'status': 'damaged' if problems else result['status'] if result else 'not run'}
  metrics = {name: (record['value'], record['unit']) for name, record in manifest['metrics'].items()}
  settings = {name: manifest[name] for name in ('profile', 'seed')} | manifest['sizes'] | manifest['environment']
  status = result['status'] if result else 'not run'
  return metrics, {'status': status, **{name: str(value) for name, value in settings.items()}}
