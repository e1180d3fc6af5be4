"""The small files of a run: their names and shapes, and how they are read and written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.files import DamagedFile, finite, parse_json, plain_name, read_json, replacing

_NUMBER = (finite, str)  # 'nan' is written as a word
_BANDS = ({'min': finite, 'max': (finite, None), 'reason': str}, {'min': None, 'max': finite, 'reason': str}, None)
METRIC = {
  'metric': str,
  'value': _NUMBER,
  'unit': str,
  'baseline': (str, None),
  'baseline_value': (*_NUMBER, None),
  'baselines': {str: _NUMBER},
  'paper': (*_NUMBER, None),
}
JUDGED_METRIC = {**METRIC, 'band': _BANDS, 'in_band': (bool, None)}
RUN = {
  'id': str,
  'profile': PROFILES.__contains__,
  'only': [str],
  'notebooks': {plain_name: str},
  'overrides': {str: object},
  'created': str,
  'commit': str,
  'uncommitted_changes': bool,
}
WEIGHTS = 'weights'
"""Folder of trained weights, in the folder of a notebook's run and beside the notebooks."""
REQUEST = {'source': str, 'executable': str, 'overrides': {str: object}}
OUTCOME = {'status': str, 'message': str}
RESULT = {'notebook': str, 'status': str, 'seconds': finite, 'message': str, 'manifest_sha256': str}
MANIFEST = {
  'status': str,
  'problems': [str],
  'notebook': plain_name,
  'profile': PROFILES.__contains__,
  'seed': int,
  'sizes': {str: object},
  'finished': str,
  'environment': {'device': str, 'commit': str, 'uncommitted_changes': bool},
  'data': [{'name': str, 'kind': str, 'source': str, 'licence': str, 'counts': {str: int}, 'checksum': str}],
  'metrics': {str: JUDGED_METRIC},
  'figures': [{'slug': str, 'alt': str, 'files': {plain_name: str}}],
}


def write_text(path: Path, text: str) -> None:
  """Writes a whole file or nothing: a reader sees the old content or the new, never a part."""
  with replacing(path) as aside:
    aside.write_text(text, encoding='utf-8')


def write_json(path: Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + '\n')


def append_record(path: Path, record: Mapping[str, Any]) -> None:
  """Adds one line of JSON and returns when it is on the disk, so that a killed kernel loses nothing."""
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + '\n')
    file.flush()
    os.fsync(file.fileno())


def read_records(path: Path, shape: Any = object) -> list[dict[str, Any]]:
  """The whole lines of a JSON-lines file; a last line that a crash cut short, or one of another shape, is left out."""
  records = []
  with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
    for line in path.read_bytes().splitlines():
      with contextlib.suppress(UnicodeDecodeError, DamagedFile):
        records.append(parse_json(line.decode(), shape, path.name))
  return records


def open_run(folder: Path) -> dict[str, Any]:
  """The record of a run, from whose folder nothing leads out.

  Raises:
    RequestError: if the folder is not one of a run, or holds a link that leaves it.
    DamagedFile: if its run.json is damaged.
  """
  record = read_json(folder / 'run.json', RUN)
  if record is None:
    raise RequestError(f'{folder} is not the folder of a run: it holds no run.json.')
  inside = folder.resolve()
  for place, folders, files in os.walk(inside):
    for path in (Path(place, name) for name in (*folders, *files)):
      if path.is_symlink() and not path.resolve().is_relative_to(inside):
        raise RequestError(f'{path} is a link that leaves the folder of the run; remove it.')
  return record


def published_name(notebook: str, profile: str, file: str) -> str:
  """What a file of a run is called where it is committed: '01_learning_curve.png', '01_learning_curve.full.png'."""
  slug, suffix = file.rsplit('.', 1)
  middle = '' if profile == 'demo' else f'.{profile}'
  return f'{notebook.split("_")[0]}_{slug}{middle}.{suffix}'


def file_hash(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def read_notebook(place: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None, list[str]]:
  """Result and manifest of a notebook in a run, each None where there is none, and what is damaged, a sentence each."""
  with contextlib.suppress(FileNotFoundError):  # a new attempt is setting the files of this one aside
    return _read_notebook(place)
  return None, None, []


def _read_notebook(place: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None, list[str]]:
  result = manifest = None
  try:
    result = read_json(place / 'result.json', RESULT)
    manifest = read_json(place / 'manifest.json', MANIFEST)
  except DamagedFile as error:
    return result, manifest, [str(error)]
  if result is not None and result['manifest_sha256'] != (file_hash(place / 'manifest.json') if manifest else ''):
    return result, manifest, [f'{place / "manifest.json"} is not the one that was judged.']
  damaged = damaged_figure(place, manifest) if manifest else None
  return result, manifest, [f'{place / damaged} is gone or damaged.'] if damaged else []


def accepted_manifests(run: Path) -> dict[str, dict[str, Any]]:
  """Manifests by notebook of a run that can be published.

  Raises:
    RequestError, DamagedFile: if it is not complete, damaged, a smoke run or has changed parameters.
  """
  record = open_run(run)
  if record['profile'] == 'smoke':
    raise RequestError(f'{run} is a smoke run; its numbers are not results. Publish a demo, full or paper run.')
  if set(record['overrides']) - {'seed'}:
    raise RequestError(f'{run} ran with changed parameters {record["overrides"]}; publish a run without --set.')
  manifests = {}
  for name in record['notebooks']:
    result, manifest, problems = read_notebook(run / name)
    if problems:
      raise RequestError(f'{run} is not an accepted run: {problems[0]} Run {name} again with --resume.')
    if not result or not manifest or result['status'] != 'complete':
      raise RequestError(f'{run} is not an accepted run: {name} is not complete. Complete it with --resume.')
    manifests[name] = manifest
  return manifests


def damaged_figure(place: Path, manifest: Mapping[str, Any]) -> str | None:
  """The first file of a notebook's figures that is absent or is not what was saved; None if all are right."""
  for figure in manifest['figures']:
    for name, sha256 in figure['files'].items():
      path = place / 'figures' / name
      if not path.is_file() or file_hash(path) != sha256:
        return f'figures/{name}'
  return None


def set_aside(folder: Path, names: tuple[str, ...]) -> None:
  """Moves the named entries of an earlier attempt to `earlier/<number>`: a new attempt overwrites nothing."""
  present = [folder / name for name in names if os.path.lexists(folder / name)]
  if not present:
    return
  number = 1
  while (folder / 'earlier' / str(number)).exists():
    number += 1
  target = folder / 'earlier' / str(number)
  target.mkdir(parents=True)
  for path in present:
    path.rename(target / path.name)


def project_root() -> Path:
  """The folder that holds `notebooks/`: the current one or a parent of it, else the checkout of this package."""
  here = Path.cwd()
  for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
    if (folder / 'notebooks').is_dir():
      return folder
  return here
