"""Runs the sequence of notebooks through papermill: each in its own process, none able to take the others down.

    runs/20260131-120000-demo-3f9a/        one run
      run.json  index.html
      01_perceiver_images_as_bytes/        one notebook: the `run_dir` it is given
        request.json  result.json  log.txt  executed.ipynb  reader.html  full.html
        metrics.jsonl  manifest.json  figures/  checkpoints/  earlier/

Green is what can be shown: every cell completed, and a manifest that says "complete" with its figures in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments import errors, pages, report
from perceiver_lib.experiments.bands import FILE_NAME as BANDS_FILE
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.environment import git_commit, kernel_environment
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import read_json, set_aside, write_json
from perceiver_lib.experiments.notebooks import Notebook, discover, select
from perceiver_lib.experiments.processes import run_limited
from perceiver_lib.experiments.profiles import TIME_LIMIT_SECONDS, check_profile
from perceiver_lib.experiments.run import OWN_FILES
from perceiver_lib.training.progress import format_duration

SMALLEST_FREE_BYTES = 100 * 2**20
_RUNNER_FILES = ('request.json', 'outcome.json', 'result.json', 'log.txt', 'executed.ipynb', 'reader.html', 'full.html')
_EXIT_CODES = {
  'complete': errors.EXIT_OK,
  'failed': errors.EXIT_NOTEBOOK_FAILED,
  'time limit': errors.EXIT_TIME_LIMIT,
  'kernel died': errors.EXIT_KERNEL_DIED,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """How one notebook ended: 'complete', 'failed', 'time limit' or 'kernel died', and why."""

  notebook: str
  status: str
  seconds: float
  message: str = ''


def exit_code(results: Sequence[Result]) -> int:
  """0 if all are complete, the code of the failure if all failures are of one kind, else 1."""
  codes = {_EXIT_CODES[result.status] for result in results} - {errors.EXIT_OK}
  return codes.pop() if len(codes) == 1 else (errors.EXIT_NOTEBOOK_FAILED if codes else errors.EXIT_OK)


def reproduce(
  notebooks_folder: Path,
  *,
  profile: str | None = None,
  only: Sequence[str] = (),
  overrides: Mapping[str, Any] | None = None,
  run_dir: Path | None = None,
  resume: Path | None = None,
  time_limit: float | None = None,
  say: Callable[[str], None] = print,
) -> tuple[Path, list[Result]]:
  """Runs notebooks and writes the report page after each.

  Args:
    notebooks_folder: holds `NN_topic.ipynb` and `bands.json`; its parent is the kernels' working directory.
    profile: one of `profiles.PROFILES`; 'demo' if None, or the resumed run's.
    only: numbers or names; all if empty, or the resumed run's.
    overrides: parameter values that every selected notebook must know; the resumed run's if None.
    run_dir: folder of this run, new or empty. None: a new one under `runs/` with a unique name.
    resume: folder of an earlier run to complete. What is complete there with the same sources and parameters stays.
    time_limit: seconds of wall clock a notebook; None: the profile's.
    say: receives lines for people.

  Returns:
    The run's folder and how each notebook ended.

  Raises:
    RequestError: before anything starts, if the request cannot be carried out.
    OSError: if the run's folder cannot be written.
  """
  if resume is not None:
    if run_dir is not None:
      raise RequestError('--resume already names the folder of the run; leave --run-dir out.')
    profile, only, overrides = _recorded_request(resume, profile, only, overrides)
  profile, overrides = check_profile(profile or 'demo'), dict(overrides or {})
  for name in ('profile', 'run_dir'):
    if name in overrides:
      raise RequestError(f'Parameter {name!r} is set by the runner; use --{name.replace("_", "-")} instead of --set.')
  selected = select(discover(notebooks_folder), only)
  parameters = {n.name: n.resolve({'profile': profile, **overrides}) for n in selected}
  load_declarations(notebooks_folder / BANDS_FILE)
  folder = resume or _new_folder(run_dir, notebooks_folder.parent, profile)
  folder = folder.resolve()
  with _locked(folder):
    if shutil.disk_usage(folder).free < SMALLEST_FREE_BYTES:
      raise RequestError(
        f'Less than {SMALLEST_FREE_BYTES // 2**20} MB are free at {folder}; free some or use --run-dir.'
      )
    if resume is None:
      _write_run_record(folder, profile, only, overrides, selected)
    say(f'Run folder: {folder}')
    results = []
    for number, notebook in enumerate(selected, 1):
      say(f'[{number}/{len(selected)}] {notebook.name}  ({profile})')
      request = _request(notebook, parameters[notebook.name], overrides, folder)
      results.append(_run_notebook(notebook, request, folder, time_limit or TIME_LIMIT_SECONDS[profile], say))
      report.write_report(folder)
  return folder, results


def _run_notebook(
  notebook: Notebook, request: dict[str, Any], folder: Path, limit: float, say: Callable[[str], None]
) -> Result:
  place = folder / notebook.name
  if (kept := _kept_result(place, request)) is not None:
    say('      kept: complete with the same sources and parameters')
    return kept
  place.mkdir(parents=True, exist_ok=True)
  set_aside(place, _RUNNER_FILES + OWN_FILES)
  write_json(place / 'request.json', request)
  start = time.monotonic()
  status = run_limited(
    [sys.executable, '-m', 'perceiver_lib.experiments.execute', str(place)],
    log=place / 'log.txt',
    cwd=Path(request['cwd']),
    environment=kernel_environment(),
    limit=limit,
    tick=_progress(place / 'log.txt', say),
  )
  seconds = round(time.monotonic() - start, 1)
  result = _judge(place, notebook.name, status, seconds, limit)
  with contextlib.suppress(FileNotFoundError):
    pages.write_pages(place / 'executed.ipynb', title=notebook.title)
  write_json(place / 'result.json', dataclasses.asdict(result))
  say(f'      {result.status} in {format_duration(seconds)}' + (f': {result.message}' if result.message else ''))
  return result


def _judge(place: Path, name: str, exit_status: int | None, seconds: float, limit: float) -> Result:
  outcome, manifest = read_json(place / 'outcome.json'), read_json(place / 'manifest.json')

  def result(status: str, message: str = '') -> Result:
    return Result(notebook=name, status=status, seconds=seconds, message=message)

  if exit_status is None:
    return result('time limit', f'stopped at the limit of {format_duration(limit)}; see log.txt, or raise --time-limit')
  if outcome is None:
    return result('failed', f'the process ended with status {exit_status}: {_last_line(place / "log.txt")}')
  if outcome['status'] != 'complete':
    problems = (manifest or {}).get('problems')
    return result(outcome['status'], '; '.join(problems) if problems else outcome['message'])
  if manifest is None or manifest['status'] != 'complete':
    return result('failed', 'every cell ran, but no run.finish() wrote a complete manifest; is it the last cell?')
  if (missing := _missing_figures(place, manifest)) is not None:
    return result('failed', f'the manifest names {missing}, which is not there')
  return result('complete')


def _missing_figures(place: Path, manifest: Mapping[str, Any]) -> str | None:
  """The first figure of a manifest that is absent or is not the picture that was saved."""
  for figure in manifest['figures']:
    path = place / 'figures' / figure['files'][0]
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != figure['sha256']:
      return f'figures/{path.name}'
  return None


def _kept_result(place: Path, request: Mapping[str, Any]) -> Result | None:
  """The result of an earlier attempt in this folder if it is complete and was asked for in the same words."""
  earlier, manifest = read_json(place / 'result.json'), read_json(place / 'manifest.json')
  if not earlier or not manifest or earlier['status'] != 'complete' or manifest['status'] != 'complete':
    return None
  if read_json(place / 'request.json') != request or _missing_figures(place, manifest) is not None:
    return None
  return Result(**{field.name: earlier[field.name] for field in dataclasses.fields(Result)})


def _request(
  notebook: Notebook, parameters: Mapping[str, Any], overrides: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
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


def _recorded_request(
  folder: Path, profile: str | None, only: Sequence[str], overrides: Mapping[str, Any] | None
) -> tuple[str, Sequence[str], Mapping[str, Any]]:
  record = read_json(folder / 'run.json')
  if record is None:
    raise RequestError(f'{folder} is not the folder of a run (it holds no run.json), so it cannot be resumed.')
  if profile is not None and profile != record['profile']:
    raise RequestError(f'{folder} is a {record["profile"]} run; it cannot be resumed as {profile}.')
  if overrides and dict(overrides) != record['overrides']:
    raise RequestError(f'{folder} was started with {record["overrides"] or "no --set"}; resume it without --set.')
  return record['profile'], only or record['only'], record['overrides']


def _new_folder(run_dir: Path | None, root: Path, profile: str) -> Path:
  if run_dir is None:
    name = f'{datetime.datetime.now():%Y%m%d-%H%M%S}-{profile}-{secrets.token_hex(2)}'
    folder = root / 'runs' / name
    folder.mkdir(parents=True)
    return folder
  run_dir.mkdir(parents=True, exist_ok=True)
  if any(run_dir.iterdir()):
    raise RequestError(f'{run_dir} is not empty and stays as it is; choose a new folder, or continue it with --resume.')
  return run_dir


def _write_run_record(
  folder: Path, profile: str, only: Sequence[str], overrides: Mapping[str, Any], notebooks: Sequence[Notebook]
) -> None:
  commit, dirty = git_commit(notebooks[0].path.parent)
  record = {
    'id': folder.name,
    'profile': profile,
    'only': list(only),
    'notebooks': {notebook.name: notebook.title for notebook in notebooks},
    'overrides': dict(overrides),
    'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'commit': commit,
    'uncommitted_changes': dirty,
  }
  write_json(folder / 'run.json', record)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Holds the run's folder for this process; the lock goes with the process, however that ends."""
  with (folder / '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise RequestError(f'Another runner is working in {folder}; wait for it, or start a run of its own.') from None
    yield


def _progress(log: Path, say: Callable[[str], None]) -> Callable[[float], None]:
  """Says every 30 seconds how long a notebook has been running and the last line it printed."""
  last = 0.0

  def tick(seconds: float) -> None:
    nonlocal last
    if seconds - last >= 30:
      last = seconds
      say(f'      {format_duration(seconds):>12}  {_last_line(log)[:100]}')

  return tick


def _last_line(log: Path) -> str:
  try:
    lines = log.read_text(encoding='utf-8', errors='replace')[-4000:].splitlines()
  except FileNotFoundError:
    return ''
  return next((line.strip() for line in reversed(lines) if line.strip()), '')
