"""Two runs side by side: their metrics, and what differs in settings and environment."""

from __future__ import annotations

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


def _facts(place: Path) -> tuple[dict[str, tuple[float | str, str]], dict[str, str]]:
  """Values with their units by metric; status, settings and environment in words."""
  result, manifest, problems = read_notebook(place)
  if problems or manifest is None:
    return {}, {'status': 'damaged' if problems else result['status'] if result else 'not run'}
  metrics = {name: (record['value'], record['unit']) for name, record in manifest['metrics'].items()}
  settings = {name: manifest[name] for name in ('profile', 'seed')} | manifest['sizes'] | manifest['environment']
  status = result['status'] if result else 'not run'
  return metrics, {'status': status, **{name: str(value) for name, value in settings.items()}}
