"""From an accepted run to what is committed: `figures/`, `figures/results.json`, RESULTS.md and README's headlines."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from perceiver_lib.experiments.environment import commit_name
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import (
  JUDGED_METRIC,
  WEIGHTS,
  accepted_manifests,
  file_hash,
  published_name,
  write_json,
  write_text,
)
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.experiments.tables import literal, markdown
from perceiver_lib.experiments.wording import describe_band, describe_number, describe_paper
from perceiver_lib.files import plain_name, read_json, read_text, replacing

RECORDED = ('metric', 'value', 'unit', 'baseline', 'baseline_value', 'baselines', 'paper', 'band')
_RECORDS = [
  {
    'notebook': plain_name,
    'profile': PROFILES.__contains__,
    'seed': int,
    'device': str,
    'date': str,
    'commit': str,
    **{name: JUDGED_METRIC[name] for name in RECORDED},
  }
]
_INDEX = {plain_name: {'metric': str}}
TABLE_START, TABLE_END = '<!-- results: start -->', '<!-- results: end -->'
HEADLINES = {
  'Exact': (
    '00_tour/rule_violations',
    '11_released_weights/stand_in_difference',
  ),
  'Learned': (
    '02_perceiver_io_text/restored_own',
    '03_perceiver_io_optical_flow/two_halves_percent_of_constant',
    '04_perceiver_io_multimodal/label_picture',
    '05_perceiver_io_entity_sets/win_rate',
    '07_perceiver_ar_music/test_nats_per_token',
    '08_unified_io_ar/dates_exact',
    '09_attention_maps/dates_read_mass',
    '12_visual_language_model/exact_captions',
  ),
  'Cost': (
    '10_scaling_and_memory/longest_step_gigabytes',
    '10_scaling_and_memory/time_exponent',
    '10_scaling_and_memory/generation_speedup',
  ),
}
"""What README shows of the results: by group, 'notebook/metric'."""


def publish(run: Path, root: Path) -> list[str]:
  """Copies the figures of an accepted run into `figures/`, merges its metrics into results.json, renews the tables.

  Records and figures of notebooks and profiles that the run does not hold stay as they are. Figures of a profile other
  than demo carry its name: `01_learning_curve.full.png`.

  Args:
    run: folder of the run.
    root: the project, with `README.md`.

  Returns:
    The names of the figure files that were written.

  Raises:
    RequestError, DamagedFile: if the run is not complete, damaged, a smoke run or has changed parameters; or if README
      has no place for the table, or results.json is damaged. Nothing has been written then.
  """
  manifests = accepted_manifests(run)
  readme = root / 'README.md'
  text = read_text(readme) or ''
  if text.count(TABLE_START) != 1 or text.count(TABLE_END) != 1 or text.index(TABLE_START) > text.index(TABLE_END):
    raise RequestError(f'{readme} needs one line "{TABLE_START}" and below it one line "{TABLE_END}".')
  target = root / 'figures'
  earlier = read_json(target / 'results.json', _RECORDS) or []

  written = []
  for name, manifest in manifests.items():
    for figure in manifest['figures']:
      for file in figure['files']:
        published = published_name(name, manifest['profile'], file)
        with replacing(target / published) as aside:
          shutil.copyfile(run / name / 'figures' / file, aside)
        written.append(published)
    # What an earlier run of the notebook showed, and this one does not, is no figure of it any more.
    for path in target.glob(published_name(name, manifest['profile'], '*.*')):
      if path.name not in written and (manifest['profile'] != 'demo' or path.name.count('.') == 1):
        path.unlink()
  fresh = [row for manifest in manifests.values() for row in result_records(manifest)]
  replaced = {(manifest['notebook'], manifest['profile']) for manifest in manifests.values()}
  kept = [row for row in earlier if (row['notebook'], row['profile']) not in replaced]
  order = list(PROFILES)
  rows = sorted(kept + fresh, key=lambda row: (row['notebook'], order.index(row['profile'])))
  write_json(target / 'results.json', rows)
  write_text(root / 'RESULTS.md', results_page(rows))
  before, after = text.split(TABLE_START)[0], text.split(TABLE_END)[1]
  write_text(readme, f'{before}{TABLE_START}\n{headlines(rows)}\n{TABLE_END}{after}')
  return written


def keep_weights(run: Path, folder: Path) -> list[str]:
  """Copies the trained weights of an accepted run that `folder`/index.json names, and renews their hashes and scores.

  The index is written by hand: `{"06_language.safetensors": {"metric": "test_bits_per_byte"}}`, with the metric whose
  value tells that the weights are good.

  Returns:
    The names of the files that were written; those of notebooks that the run does not hold stay as they are.

  Raises:
    RequestError, DamagedFile: if the run is not complete, damaged, a smoke run or has changed parameters, or if weights
      are not those that it ended with.
  """
  manifests = accepted_manifests(run)
  index = read_json(folder / 'index.json', _INDEX) or {}
  written = []
  for name, manifest in manifests.items():
    for file in sorted((run / name / WEIGHTS).glob('*.safetensors')):
      published = published_name(name, manifest['profile'], file.name)
      if (entry := index.get(published)) is None:
        continue
      if entry['metric'] not in manifest['metrics']:
        raise RequestError(f'{published} is judged by {entry["metric"]!r}, which {name} did not log; mend index.json.')
      if (sha256 := file_hash(file)) != manifest.get('weights', {}).get(file.name):
        raise RequestError(f'{file} is not what the run of {name} ended with; run it again.')
      with replacing(folder / published) as aside:
        shutil.copyfile(file, aside)
      entry['value'], entry['sha256'] = manifest['metrics'][entry['metric']]['value'], sha256
      written.append(published)
  write_json(folder / 'index.json', index)
  return written


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
      'commit': commit_name(environment),
    }
    for metric in manifest['metrics'].values()
  ]


def results_page(rows: Sequence[Mapping[str, Any]]) -> str:
  """RESULTS.md: every record beside its baseline, the paper's value and its band, a table for each notebook's run."""
  parts = [
    '# Results',
    "Written by `make figures`. Every number stands beside the strongest of its baselines and the paper's value. The "
    'rows of a table come from one run, whose profile, seed, device, day and commit its first line names.',
  ]
  runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for row in rows:
    runs.setdefault((row['notebook'], row['profile']), []).append(row)
  for (notebook, profile), group in runs.items():
    first = group[0]
    stamp = (
      f'{profile}, seed {first["seed"]}, {first["device"]}, {first["date"]}, commit {first["commit"] or "unknown"}'
    )
    command = f'make reproduce PROFILE={profile} ONLY={notebook.split("_")[0]}'
    parts += [f'## [{literal(notebook)}](notebooks/{quote(notebook)}.ipynb)', f'{literal(stamp)}: `{command}`']
    parts.append(results_table(group))
  return '\n\n'.join(parts) + '\n'


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Records as a Markdown table."""
  columns = ('metric', 'measured', 'baseline', 'paper', 'band')
  lines = []
  for row in rows:
    measured, baseline = beside(row)
    paper, band = literal(describe_paper(row)) or '–', describe_band(row['band']) or '–'
    lines.append([literal(row['metric'].replace('_', ' ')), measured, baseline, paper, band])
  return markdown(columns, lines)


def headlines(rows: Sequence[Mapping[str, Any]]) -> str:
  """The records of `HEADLINES` that there are, of the demo profile, as README's table."""
  found = {f'{row["notebook"]}/{row["metric"]}': row for row in rows if row['profile'] == 'demo'}
  lines = []
  for group, names in HEADLINES.items():
    for row in (found[name] for name in names if name in found):
      link = f'[{row["notebook"].split("_")[0]}](notebooks/{quote(row["notebook"])}.ipynb)'
      lines.append([group, link, literal(row['metric'].replace('_', ' ')), *beside(row)])
      group = ''
  return markdown(('', 'notebook', 'metric', 'measured', 'strongest baseline'), lines)


def beside(row: Mapping[str, Any]) -> tuple[str, str]:
  """The measured value, and its strongest baseline in words."""
  baseline = '–'
  if row['baseline'] is not None:
    baseline = literal(f'{describe_number(row["baseline_value"], row["unit"])} ({row["baseline"]})')
  return f'**{literal(describe_number(row["value"], row["unit"]))}**', baseline
