"""One attempt at one notebook: what it is asked, its process, how it ended, and whether an earlier attempt still holds.

Green is what can be shown: every cell completed, and a manifest that says "complete" with its figures in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments import pages
from perceiver_lib.experiments.environment import kernel_environment
from perceiver_lib.experiments.files import (
  MANIFEST,
  OUTCOME,
  damaged_figure,
  file_hash,
  read_notebook,
  set_aside,
  write_json,
)
from perceiver_lib.experiments.notebooks import Notebook
from perceiver_lib.experiments.processes import describe_exit, end_started_for, run_limited
from perceiver_lib.experiments.run import OWN_FILES
from perceiver_lib.files import DamagedFile, read_json
from perceiver_lib.training.progress import format_duration

_CHATTER = re.compile(r'(Executing|Ending) (Cell \d+-+|notebook)|Kernel died while|\[IPKernelApp\] WARNING')
_RUNNER_FILES = ('request.json', 'outcome.json', 'result.json', 'log.txt', 'executed.ipynb', 'reader.html')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """How one notebook ended: 'complete', 'failed', 'time limit' or 'kernel died', and why."""

  notebook: str
  status: str
  seconds: float
  message: str = ''
  manifest_sha256: str = ''


@dataclasses.dataclass(frozen=True)
class Limit:
  """Seconds a notebook, and the clock's time (`time.monotonic`) at which the whole run ends."""

  a_notebook: float
  deadline: float

  def now(self) -> float:
    """Seconds that a notebook has which starts now."""
    return min(self.a_notebook, self.deadline - time.monotonic())


class _Stopped(Exception):
  """The run was interrupted while this notebook ran."""


def run_notebook(
  notebook: Notebook,
  request: dict[str, Any],
  folder: Path,
  limit: Limit,
  stop: threading.Event,
  say: Callable[[str], None],
) -> Result:
  """Runs a notebook in its folder of the run, unless an earlier attempt there is complete and was asked the same.

  Args:
    request: what `request_of` says.
    limit: of its time.
    stop: set when the run is interrupted; the notebook's process is ended then.

  Raises:
    OSError: if the folder cannot be written.
  """
  place, number = folder / notebook.name, notebook.name.partition('_')[0]

  def tell(words: str) -> None:
    say(f'  {number}  {words}')

  if (kept := _kept_result(place, request)) is not None:
    tell('kept: complete with the same sources and parameters')
    return kept if (place / 'reader.html').is_file() else _with_pages(kept, place, notebook.title)
  place.mkdir(parents=True, exist_ok=True)
  end_started_for(place / 'log.txt')  # a kernel outlives a killed runner by seconds
  set_aside(place, _RUNNER_FILES + OWN_FILES)
  write_json(place / 'request.json', request)
  if (seconds_left := limit.now()) <= 0:
    result = Result(
      notebook=notebook.name, status='time limit', seconds=0.0, message='the budget of the run was used up'
    )
    write_json(place / 'result.json', dataclasses.asdict(result))
    tell(f'{result.status}: {result.message}')
    return result
  start = time.monotonic()
  status = run_limited(
    [sys.executable, '-m', 'perceiver_lib.experiments.execute', str(place)],
    log=place / 'log.txt',
    cwd=Path(request['cwd']),
    environment=kernel_environment(request['parameters']['profile']),
    limit=seconds_left,
    tick=_progress(place / 'log.txt', tell, stop),
  )
  seconds = round(time.monotonic() - start, 1)
  result = _judge(place, notebook.name, status, seconds, seconds_left)
  write_json(place / 'result.json', dataclasses.asdict(result))
  result = _with_pages(result, place, notebook.title)
  tell(f'{result.status} in {format_duration(seconds)}' + (f': {result.message}' if result.message else ''))
  return result


def _with_pages(result: Result, place: Path, title: str) -> Result:
  """The result after the page for readers was written; a notebook that cannot be shown is not complete."""
  try:
    pages.write_page(place / 'executed.ipynb', place / 'reader.html', title=title)
  except FileNotFoundError:  # it never started
    pass
  except OSError:
    raise
  except Exception as error:  # a damaged notebook can surface as any error of nbformat and nbconvert
    if result.status == 'complete':
      message = f'executed.ipynb is damaged and cannot be shown ({type(error).__name__})'
      result = dataclasses.replace(result, status='failed', message=message)
      write_json(place / 'result.json', dataclasses.asdict(result))
  return result


def _judge(place: Path, name: str, exit_status: int | None, seconds: float, limit: float) -> Result:
  sha256 = ''

  def result(status: str, message: str = '') -> Result:
    return Result(notebook=name, status=status, seconds=seconds, message=message, manifest_sha256=sha256)

  def last_words() -> str:
    line = _last_line(place / 'log.txt')
    return f': {line}; see log.txt' if line else '; see log.txt'

  try:
    if (manifest := read_json(place / 'manifest.json', MANIFEST)) is not None:
      sha256 = file_hash(place / 'manifest.json')
    outcome = read_json(place / 'outcome.json', OUTCOME)
  except DamagedFile as error:
    return result('failed', str(error))
  if exit_status is None:
    return result(
      'time limit', f'stopped at the limit of {format_duration(limit)}; see log.txt, or raise --time-limit or --budget'
    )
  if outcome is None:
    return result('failed', f'the process {describe_exit(exit_status)}{last_words()}')
  if outcome['status'] == 'kernel died':
    return result('kernel died', outcome['message'] + last_words())
  if outcome['status'] != 'complete':
    problems = manifest['problems'] if manifest else []
    return result('failed', '; '.join(problems) if problems else outcome['message'])
  if manifest is None or manifest['status'] != 'complete':
    return result('failed', 'every cell ran, but no run.finish() wrote a complete manifest; is it the last cell?')
  if (missing := damaged_figure(place, manifest)) is not None:
    return result('failed', f'the manifest names {missing}, which is not there')
  return result('complete')


def _kept_result(place: Path, request: Mapping[str, Any]) -> Result | None:
  """The result of an earlier attempt in this folder if it is complete and was asked for in the same words."""
  earlier, manifest, problems = read_notebook(place)
  if problems or not earlier or not manifest or {earlier['status'], manifest['status']} != {'complete'}:
    return None
  with contextlib.suppress(DamagedFile):
    if read_json(place / 'request.json') == request:
      return Result(**{field.name: earlier[field.name] for field in dataclasses.fields(Result)})
  return None


def request_of(
  notebook: Notebook, parameters: Mapping[str, Any], overrides: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
  """Everything that an attempt depends on, as its `request.json`; equal requests have equal results."""
  return {
    'notebook': notebook.name,
    'source': str(notebook.path.resolve()),
    'notebook_sha256': notebook.sha256,
    'library_sha256': library_hash(),
    'cwd': str(notebook.path.resolve().parents[1]),
    'executable': sys.executable,
    'parameters': {**parameters, 'run_dir': str(folder / notebook.name)},
    'overrides': {name: value for name, value in overrides.items() if name != 'seed'},
  }


def library_hash() -> str:
  """SHA-256 over the library's Python files: a run that mixes two versions of it would report neither."""
  package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
  return digest.hexdigest()


def _progress(log: Path, tell: Callable[[str], None], stop: threading.Event) -> Callable[[float], None]:
  """Says every 30 seconds how long a notebook has been running and the last line it printed."""
  last = 0.0

  def tick(seconds: float) -> None:
    nonlocal last
    if stop.is_set():
      raise _Stopped
    if seconds - last >= 30:
      last = seconds
      tell(f'{format_duration(seconds):>12}  {_last_line(log)[:100]}')

  return tick


def _last_line(log: Path) -> str:
  try:
    lines = log.read_text(encoding='utf-8', errors='replace')[-4000:].splitlines()
  except FileNotFoundError:
    return ''
  return next((line.strip() for line in reversed(lines) if line.strip() and not _CHATTER.match(line)), '')
