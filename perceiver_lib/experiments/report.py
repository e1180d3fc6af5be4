"""The report of a run: one `index.html` that needs nothing but itself, to be mailed, archived or shown in a talk."""

from __future__ import annotations

import base64
import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from perceiver_lib.experiments.accept import read_history
from perceiver_lib.experiments.environment import commit_name
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import (
  METRIC,
  RUN,
  open_run,
  project_root,
  read_notebook,
  read_records,
  write_text,
)
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.experiments.wording import describe_band, describe_number, describe_paper
from perceiver_lib.files import DamagedFile, read_json
from perceiver_lib.training.progress import format_duration

THUMBNAIL_WIDTH = 880
_TEMPLATE = 'report.html.j2'


def write_report(folder: Path, target: Path | None = None) -> Path:
  """Writes the page of a run from what lies in its folder; also while the run goes on, or after it broke.

  Args:
    target: None = `index.html` in the folder of the run, to which its links lead.

  Raises:
    RequestError, DamagedFile: as `files.open_run`. What else is damaged is named on the page.
  """
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  target = target or folder / 'index.html'
  write_text(target, environment.get_template(_TEMPLATE).render(**collect(folder)))
  return target


def collect(folder: Path) -> dict[str, Any]:
  """What the page shows, as plain values: the run, and each notebook with its metrics and figures.

  Raises:
    RequestError, DamagedFile: as `files.open_run`.
  """
  run = open_run(folder)
  history = read_history(project_root())
  notebooks = [
    _notebook(folder / name, name, title, lambda metric, name=name: history.get((name, run['profile'], metric), []))
    for name, title in run['notebooks'].items()
  ]
  complete = sum(notebook['status'] == 'complete' for notebook in notebooks)
  open_ones = sum(notebook['status'] == 'not run' for notebook in notebooks)
  devices = sorted({notebook['device'] for notebook in notebooks if notebook['device']})
  return {
    'run': run,
    'commit': commit_name(run),
    'profile_meaning': PROFILES[run['profile']],
    'notebooks': notebooks,
    'complete': complete,
    'status': 'complete' if complete == len(notebooks) else ('unfinished' if open_ones else 'failed'),
    'time': format_duration(sum(notebook['seconds'] for notebook in notebooks)),
    'device': '; '.join(devices),
    'versions': next((notebook['versions'] for notebook in notebooks if notebook['versions']), ''),
  }


def learned(folder: Path) -> str:
  """One screen for the terminal: status, time and the metrics of each notebook, then where the report is."""
  page = collect(folder)
  head = f'{page["run"]["profile"]} profile: {page["complete"]} of {len(page["notebooks"])} notebooks complete'
  lines = ['', f'{head}, {page["time"]}']
  width = max(len(metric['label']) for n in page['notebooks'] for metric in [*n['metrics'], {'label': ''}])
  for notebook in page['notebooks']:
    mark = {'complete': 'ok  ', 'unfinished': '-   ', 'failed': 'FAIL'}[notebook['mood']]
    lines.append(f'{mark} {notebook["name"]}  {notebook["time"]}')
    if notebook['message']:
      lines.append(f'       {notebook["status"]}: {notebook["message"]}')
    for metric in notebook['metrics']:
      beside = [f'{metric["baseline"]} {metric["baseline_value"]}'] if metric['baseline'] else []
      beside += [f'paper {metric["paper"]}'] if metric['paper'] else []
      outside = '' if metric['in_band'] is not False else f'  OUTSIDE its band {metric["band"]}'
      lines.append(f'       {metric["label"]:<{width}}  {metric["value"]:>14}  {"; ".join(beside)}{outside}'.rstrip())
  return '\n'.join([*lines, '', f'Report: {folder / "index.html"}'])


def latest_run(runs: Path) -> Path:
  """The newest run in a folder of runs; one that is damaged is passed over and named on stderr.

  Raises:
    RequestError: if there is none.
  """
  found = {}
  for path in sorted(runs.glob('*/run.json')):
    try:
      found[path.parent] = read_json(path, RUN)['created']
    except DamagedFile as error:
      print(f'Passed over: {error}', file=sys.stderr)
  if not found:
    raise RequestError(f'No run in {runs}; make one with: python -m perceiver_lib reproduce')
  return max(found, key=found.get)


def _notebook(place: Path, name: str, title: str, history: Callable[[str], Sequence[float]]) -> dict[str, Any]:
  result, manifest, problems = read_notebook(place)
  result, manifest = result or {'status': 'not run', 'seconds': 0.0, 'message': ''}, manifest or {}
  if problems:
    result |= {'status': 'damaged', 'message': ' '.join([result['message'], *problems]).strip()}
  environment = manifest.get('environment', {})
  # A kernel that died wrote no manifest, but every metric it had logged is on the disk.
  records = manifest.get('metrics') or {r['metric']: r for r in read_records(place / 'metrics.jsonl', METRIC)}
  return {
    'name': name,
    'title': title,
    'status': result['status'],
    'mood': {'complete': 'complete', 'not run': 'unfinished'}.get(result['status'], 'failed'),
    'message': result['message'],
    'seconds': result['seconds'],
    'time': format_duration(result['seconds']) if result['seconds'] else '',
    'metrics': [
      _metric({'band': None, 'in_band': None, **record}, history(record['metric'])) for record in records.values()
    ],
    'figures': [_figure(place, figure) for figure in manifest.get('figures', [])],
    'pages': [
      (label, quote(f'{name}/{file}'))
      for label, file in (('Read it', 'reader.html'), ('Log', 'log.txt'))
      if (place / file).is_file()
    ],
    'data': manifest.get('data', []),
    'seed': manifest.get('seed'),
    'device': environment.get('device', ''),
    'versions': ', '.join(
      f'{key} {environment[key]}' for key in ('python', 'jax', 'flax', 'optax') if key in environment
    ),
  }


def _metric(record: Mapping[str, Any], history: Sequence[float]) -> dict[str, Any]:
  unit, baseline = record['unit'], record['baseline_value']
  return {
    'label': record['metric'].replace('_', ' '),
    'value': describe_number(record['value'], unit),
    'baseline': record['baseline'],
    'baseline_value': '' if baseline is None else describe_number(baseline, unit),
    'paper': describe_paper(record),
    'band': describe_band(record['band']),
    'reason': (record['band'] or {}).get('reason', ''),
    'in_band': record['in_band'],
    'gauge': _gauge(record),
    'history': _history(history, record['value']),
  }


def _history(accepted: Sequence[float], value: float | str) -> dict[str, Any] | None:
  """The accepted values and this one as a line through a box of 100 x 24; None where nothing was accepted yet."""
  if not accepted or isinstance(value, str):
    return None
  values = [*accepted, value]
  low, width = min(values), max(values) - min(values)
  xs = [2 + 96 * step / (len(values) - 1) for step in range(len(values))]
  ys = [12 if width == 0 else 22 - 20 * (one - low) / width for one in values]
  points = [f'{x:.1f},{y:.1f}' for x, y in zip(xs, ys, strict=True)]
  words = f'{len(accepted)} accepted before: {", ".join(describe_number(one) for one in accepted)}'
  return {'points': ' '.join(points), 'x': xs[-1], 'y': ys[-1], 'words': words}


def _gauge(record: Mapping[str, Any]) -> dict[str, float] | None:
  """Where band, baseline and value lie on one scale from 0 to 100; None where there is no band to show."""
  band, value, baseline = record['band'], record['value'], record['baseline_value']
  if band is None or isinstance(value, str):
    return None
  marks = [mark for mark in (value, baseline, band['min'], band['max']) if isinstance(mark, int | float)]
  margin = 0.12 * (max(marks) - min(marks)) or 1.0
  low, high = min(marks) - margin, max(marks) + margin

  def place(mark: float | None, otherwise: float) -> float:
    return otherwise if mark is None else round(100 * (mark - low) / (high - low), 2)

  start, end = place(band['min'], 0.0), place(band['max'], 100.0)
  gauge = {'start': start, 'width': round(end - start, 2), 'value': place(value, 0.0)}
  return gauge if not isinstance(baseline, int | float) else {**gauge, 'baseline': place(baseline, 0.0)}


def _figure(place: Path, figure: Mapping[str, Any]) -> dict[str, Any]:
  from PIL import Image

  path = place / 'figures' / next(iter(figure['files']), '')
  link = quote(f'{place.name}/figures/{path.name}')
  thumbnail = io.BytesIO()
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      with Image.open(path) as image:
        picture = image.convert('RGB')
        picture.thumbnail((THUMBNAIL_WIDTH, 4 * THUMBNAIL_WIDTH))
        picture.quantize(128).save(thumbnail, format='PNG', optimize=True)
  except Exception as error:  # a damaged picture can surface as any error of Pillow
    alt = f'{path.name} cannot be shown ({type(error).__name__}). {figure["alt"]}'
    return {'alt': alt, 'link': link, 'source': '', 'wide': False}
  source = 'data:image/png;base64,' + base64.b64encode(thumbnail.getvalue()).decode()
  return {'alt': figure['alt'], 'link': link, 'source': source, 'wide': picture.width > 2 * picture.height}
