"""Runs the sequence of notebooks through papermill: each in its own process, none able to take the others down.

    runs/20260131-120000-demo-3f9a/        one run
      run.json  index.html
      01_perceiver_images_as_bytes/        one notebook: the `run_dir` it is given
        request.json  result.json  log.txt  executed.ipynb  reader.html
        metrics.jsonl  manifest.json  figures/  checkpoints/  earlier/

What happens to one notebook is in `experiments.attempt`.
"""

from __future__ import annotations

import datetime
import math
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from perceiver_lib.experiments import errors, report
from perceiver_lib.experiments.attempt import Limit, Result, request_of, run_notebook
from perceiver_lib.experiments.bands import FILE_NAME as BANDS_FILE
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.environment import git_commit
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import (
  open_run,
  write_json,
)
from perceiver_lib.experiments.notebooks import Notebook, check_writable, discover, select
from perceiver_lib.experiments.profiles import TIME_LIMIT_SECONDS, check_profile
from perceiver_lib.files import DamagedFile, locked

SMALLEST_FREE_BYTES = 100 * 2**20
ROOM_BYTES = 4 * 2**30
"""Memory that must be free before a notebook starts beside others; the largest in demo holds less."""
SETTLING_SECONDS = 60.0
"""After which a notebook has taken most of its memory."""
_EXIT_CODES = {
  'complete': errors.EXIT_OK,
  'failed': errors.EXIT_NOTEBOOK_FAILED,
  'time limit': errors.EXIT_TIME_LIMIT,
  'kernel died': errors.EXIT_KERNEL_DIED,
}


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
  budget: float | None = None,
  jobs: int = 1,
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
    budget: seconds of wall clock for the whole run; what it leaves no time for ends as 'time limit'. None: no bound.
    jobs: notebooks at a time; another one starts only where `ROOM_BYTES` of memory are free.
    say: receives lines for people.

  Returns:
    The run's folder and how each notebook ended.

  Raises:
    RequestError, DamagedFile: before anything starts, if the request cannot be carried out.
    OSError: if the run's folder cannot be written.
    KeyboardInterrupt: with the command that goes on, after the report page of what is there.
  """
  for what, seconds in (('time limit', time_limit), ('budget', budget)):
    if seconds is not None and not 0 < seconds < math.inf:
      raise RequestError(f'The {what} must be a number of seconds above 0; got {seconds}.')
  if jobs < 1:
    raise RequestError(f'At least one notebook must run at a time; got --jobs {jobs}.')
  run_dir, resume = (path and path.expanduser() for path in (run_dir, resume))
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
  for path in (notebooks_folder, resume or run_dir or notebooks_folder):
    check_writable(str(path.resolve()))
  place = (resume or run_dir or notebooks_folder).resolve()
  place = next(parent for parent in (place, *place.parents) if parent.exists())
  if shutil.disk_usage(place).free < SMALLEST_FREE_BYTES:
    raise RequestError(f'Less than {SMALLEST_FREE_BYTES // 2**20} MB are free at {place}; free some.')
  folder = resume or _new_folder(run_dir, notebooks_folder.parent, profile)
  folder = folder.resolve()
  busy = RequestError(f'Another runner is working in {folder}; wait for it, or start a run of its own.')
  with locked(folder / '.lock', busy):
    if resume is None:
      _write_run_record(folder, profile, only, overrides, selected)
    say(f'Run folder: {folder}')
    requests = [(notebook, request_of(notebook, parameters[notebook.name], overrides, folder)) for notebook in selected]
    limit = Limit(time_limit or TIME_LIMIT_SECONDS[profile], math.inf if budget is None else time.monotonic() + budget)
    try:
      results = _run_notebooks(requests, folder, limit, jobs, say)
    except KeyboardInterrupt:
      _write_report(folder, say)
      command = f'python -m perceiver_lib reproduce --resume {shlex.quote(str(folder))}'
      raise KeyboardInterrupt(f'Interrupted; continue with: {command}') from None
  return folder, results


def _run_notebooks(
  requests: Sequence[tuple[Notebook, dict[str, Any]]],
  folder: Path,
  limit: Limit,
  jobs: int,
  say: Callable[[str], None],
) -> list[Result]:
  """Runs up to `jobs` at a time, in order; the report page is written as each one ends.

  Every notebook is a process with a thread here that waits for it. Interrupted, it ends them all before it goes on.
  """
  stop, running, results, begun = threading.Event(), {}, {}, {}
  with ThreadPoolExecutor(max_workers=jobs) as pool:
    waiting = list(enumerate(requests, 1))
    try:
      while waiting or running:
        fresh = sum(time.monotonic() - begun[number] < SETTLING_SECONDS for number in running.values())
        while waiting and len(running) < jobs and (not running or _has_room(fresh + 1)):
          number, (notebook, request) = waiting.pop(0)
          begun[number], fresh = time.monotonic(), fresh + 1
          say(f'[{number}/{len(requests)}] {notebook.name}  ({request["parameters"]["profile"]})')
          running[pool.submit(run_notebook, notebook, request, folder, limit, stop, say)] = number
        done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        for future in done:
          results[running.pop(future)] = future.result()
          _write_report(folder, say)
    finally:
      stop.set()
  return [results[number] for number in sorted(results)]


def _has_room(count: int) -> bool:
  """Whether so many notebooks, which have not taken their memory yet, fit into what is free."""
  import psutil

  return psutil.virtual_memory().available >= count * ROOM_BYTES


def _write_report(folder: Path, say: Callable[[str], None]) -> None:
  """A notebook that damaged its run's folder does not keep the next ones from running."""
  try:
    report.write_report(folder)
  except (RequestError, DamagedFile) as error:
    say(f'      no report: {error}')


def _recorded_request(
  folder: Path, profile: str | None, only: Sequence[str], overrides: Mapping[str, Any] | None
) -> tuple[str, Sequence[str], Mapping[str, Any]]:
  record = open_run(folder)
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
