"""Running a child with a time limit, such that afterwards it and everything it started is gone.

What a child starts inherits a mark in its environment, by which it is found even when its parents have ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 5.0
_MARK = 'PERCEIVER_STARTED_FOR'


def run_limited(
  command: Sequence[str],
  *,
  log: Path,
  cwd: Path,
  environment: Mapping[str, str],
  limit: float,
  tick: Callable[[float], None] = lambda seconds: None,
) -> int | None:
  """Runs a command in a session of its own, output to a file, and ends its family with it, at the limit, on an error.

  Args:
    command: program and arguments.
    log: file that receives stdout and stderr.
    cwd: working directory.
    environment: all of the child's environment variables.
    limit: wall-clock seconds.
    tick: called about twice a second with the seconds so far.

  Returns:
    The exit status, or None if the limit was reached.
  """
  start = time.monotonic()
  with log.open('ab') as output:
    child = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      cwd=cwd,
      env={**environment, _MARK: str(log.resolve())},
      start_new_session=True,
    )
  try:
    while time.monotonic() - start < limit:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(timeout=min(0.5, limit))
      tick(time.monotonic() - start)
    return None
  finally:
    if child.poll() is None:
      _end_family(child)
    end_started_for(log)


def describe_exit(status: int) -> str:
  """What became of a process, by its exit status: 'ended with status 3', 'was ended by SIGSEGV'."""
  if status >= 0:
    return f'ended with status {status}'
  try:
    name = signal.Signals(-status).name
  except ValueError:
    name = f'signal {-status}'
  return f'was ended by {name}' + (', most often for too little memory' if name == 'SIGKILL' else '')


def end_started_for(log: Path) -> None:
  """Kills what a call with this log left running, such as one whose own process was killed."""
  import psutil

  mark = str(log.resolve())
  deadline = time.monotonic() + GRACE_SECONDS
  while time.monotonic() < deadline:
    marked = []
    for process in psutil.process_iter():
      with contextlib.suppress(psutil.Error, OSError):
        if process.pid != os.getpid() and process.environ().get(_MARK) == mark:
          process.kill()
          marked.append(process)
    if not marked:
      return
    psutil.wait_procs(marked, timeout=GRACE_SECONDS)


def _end_family(child: subprocess.Popen[bytes]) -> None:
  """Asks a child to end, then kills it, its session and its descendants (a Jupyter kernel has a session of its own)."""
  import psutil

  with contextlib.suppress(psutil.NoSuchProcess):
    family = psutil.Process(child.pid).children(recursive=True)
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
      child.wait(timeout=GRACE_SECONDS)
    for member in family:
      with contextlib.suppress(psutil.NoSuchProcess):
        member.kill()
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(child.pid, signal.SIGKILL)
  child.wait()
