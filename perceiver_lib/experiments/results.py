"""From an accepted run to what is committed: `figures/`, `figures/results.json`, and README's results table."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import read_json, write_json, write_text
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.experiments.report import describe_band
from perceiver_lib.experiments.tables import markdown
from perceiver_lib.experiments.wording import describe_number, describe_paper

RECORDED = ('metric', 'value', 'unit', 'baseline', 'baseline_value', 'baselines', 'paper', 'band')
TABLE_START, TABLE_END = '<!-- results: start -->', '<!-- results: end -->'


def publish(run: Path, root: Path) -> list[str]:
  """Copies the figures of an accepted run into `figures/`, merges its metrics into results.json, renews README's table.

  Records and figures of notebooks and profiles that the run does not hold stay as they are. Figures of a profile other
  than demo carry its name: `01_learning_curve.full.png`.

  Args:
    run: folder of the run.
    root: the project, with `README.md`.

  Returns:
    The names of the figure files that were written.

  Raises:
    RequestError: if the run is not complete, is a smoke run or has changed parameters; or if README has no place for
      the table. Nothing has been written then.
  """
  record = read_json(run / 'run.json')
  if record is None:
    raise RequestError(f'{run} is not the folder of a run: it holds no run.json.')
  if record['profile'] == 'smoke':
    raise RequestError(f'{run} is a smoke run; its numbers are not results. Publish a demo, full or paper run.')
  if set(record['overrides']) - {'seed'}:
    raise RequestError(f'{run} ran with changed parameters {record["overrides"]}; publish a run without --set.')
  manifests = {}
  for name in record['notebooks']:
    result, manifest = read_json(run / name / 'result.json'), read_json(run / name / 'manifest.json')
    if not result or not manifest or result['status'] != 'complete':
      raise RequestError(f'{run} is not an accepted run: {name} is not complete. Complete it with --resume.')
    manifests[name] = manifest
  readme = root / 'README.md'
  text = readme.read_text(encoding='utf-8')
  if text.count(TABLE_START) != 1 or text.count(TABLE_END) != 1 or text.index(TABLE_START) > text.index(TABLE_END):
    raise RequestError(f'{readme} needs one line "{TABLE_START}" and below it one line "{TABLE_END}".')

  target = root / 'figures'
  target.mkdir(exist_ok=True)
  written = []
  for name, manifest in manifests.items():
    for figure in manifest['figures']:
      for file in figure['files']:
        published = figure_name(name, manifest['profile'], file)
        shutil.copyfile(run / name / 'figures' / file, target / published)
        written.append(published)
  fresh = [row for manifest in manifests.values() for row in result_records(manifest)]
  replaced = {(manifest['notebook'], manifest['profile']) for manifest in manifests.values()}
  kept = [row for row in read_json(target / 'results.json') or [] if (row['notebook'], row['profile']) not in replaced]
  order = list(PROFILES)
  rows = sorted(kept + fresh, key=lambda row: (row['notebook'], order.index(row['profile'])))
  write_json(target / 'results.json', rows)
  before, after = text.split(TABLE_START)[0], text.split(TABLE_END)[1]
  write_text(readme, f'{before}{TABLE_START}\n{results_table(rows)}\n{TABLE_END}{after}')
  return written


def figure_name(notebook: str, profile: str, file: str) -> str:
  slug, suffix = file.rsplit('.', 1)
  middle = '' if profile == 'demo' else f'.{profile}'
  return f'{notebook.split("_")[0]}_{slug}{middle}.{suffix}'


def result_records(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A manifest's metrics as the records of results.json."""
  environment = manifest['environment']
  return [
    {
      'notebook': manifest['notebook'],
      'profile': manifest['profile'],
      **{name: metric[name] for name in RECORDED},
      'seed': manifest['seed'],
      'device': environment['device'],
      'date': manifest['finished'][:10],
      'commit': environment['commit'] + ('+' if environment['uncommitted_changes'] else ''),
    }
    for metric in manifest['metrics'].values()
  ]


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The records as a Markdown table: every number beside its baseline, the paper's value and its scale."""
  columns = ('notebook', 'metric', 'measured', 'baseline', 'paper', 'band', 'profile, device')
  lines = []
  for row in rows:
    baseline = '–'
    if row['baseline'] is not None:
      baseline = f'{describe_number(row["baseline_value"], row["unit"])} ({row["baseline"]})'
    cells = [
      f'[{row["notebook"].split("_")[0]}](notebooks/{row["notebook"]}.ipynb)',
      row['metric'].replace('_', ' '),
      f'**{describe_number(row["value"], row["unit"])}**',
      baseline,
      describe_paper(row) or '–',
      describe_band(row['band']) or '–',
      f'{row["profile"]}, {row["device"]}',
    ]
    lines.append(cells)
  return markdown(columns, lines)
