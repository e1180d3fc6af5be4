"""Running a child with a time limit, such that afterwards it and everything it started is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 5.0


def run_limited(
  command: Sequence[str],
  *,
  log: Path,
  cwd: Path,
  environment: Mapping[str, str],
  limit: float,
  tick: Callable[[float], None] = lambda seconds: None,
) -> int | None:
  """Runs a command in a session of its own, output to a file; kills its whole family at the limit or on any exception.

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
      env=dict(environment),
      start_new_session=True,
    )
  try:
    while time.monotonic() - start < limit:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(timeout=min(0.5, limit))
      tick(time.monotonic() - start)
    return None
  finally:
    end_family(child)


def end_family(child: subprocess.Popen[bytes]) -> None:
  """Asks a child to end, then kills it, its session and its descendants (a Jupyter kernel has a session of its own)."""
  if child.poll() is not None:
    return
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
