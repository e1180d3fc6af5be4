"""Functions called in a Python of their own, where only they count: once, or once a round in turn with others.

in_fresh_process('perceiver_lib.lessons.tour:measure_bytes', num_bytes=2**20)  # the numbers that it returns
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.environment import kernel_environment
from perceiver_lib.experiments.measuring import Call, peak_bytes

Answer = dict[str, Any]

FREE_MEMORY_SHARE = 0.85
"""Of the memory that is free when a process starts: what it may take."""


def in_fresh_process(function: str, **settings: Any) -> Answer:
  """The numbers that `module:function` returns in a Python of its own on the CPU.

  Of that process are `seconds` and `peak_gigabytes` where the function does not say them itself.

  Raises:
    RuntimeError: with its last line, if it fails.
  """
  with contextlib.closing(Worker(function, settings, environment={'JAX_PLATFORMS': 'cpu'})) as worker:
    if (answer := worker.answer()) is None:
      raise RuntimeError(f'{function} with {settings} gave no answer: {worker.last_words()}')
    return answer


class Worker:
  """A process that calls `module:function` with settings that JSON can hold, and answers as `serve` says."""

  def __init__(self, function: str, settings: Mapping[str, Any], *, environment: Mapping[str, str] | None = None):
    command = [sys.executable, '-m', 'perceiver_lib.experiments.workers', function, json.dumps(settings)]
    # A pipe that nobody reads while the process works could fill up and stop it.
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 (open as long as the process)
    environment = kernel_environment() | {'TOKENIZERS_PARALLELISM': 'false'} | dict(environment or {})
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
    )

  def ask(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write('run\n')
      self._process.stdin.flush()

  def answer(self) -> Answer | None:
    """The next line of numbers; None if the process has ended. What a package prints by itself is passed over."""
    for line in self._process.stdout:
      if line.startswith('{"seconds"'):
        return json.loads(line)
    return None

  def last_words(self) -> str:
    self._process.wait()
    if (status := self._process.returncode) == -9:
      return 'killed, probably out of memory'
    self._errors.seek(0)
    return (self._errors.read().strip().splitlines() or [f'status {status}'])[-1]

  def close(self) -> None:
    self._process.communicate()
    self._errors.close()


def answers_in_turn(workers: Iterable[tuple[Any, Worker]], rounds: Callable[[Any], int]) -> dict[Any, list[Answer]]:
  """What named processes answer: that they are ready, and `rounds(name)` calls; the rounds visit them in turn.

  Two never compute at once, so drift of the machine hits all of them. The last answer of one that ended is a `status`.

  Args:
    workers: a generator that makes each as it is asked for keeps them from getting ready at the same time, too.
  """
  started: dict[Any, Worker] = {}
  answers: dict[Any, list[Answer]] = {}

  def take(name: Any) -> None:
    answer = started[name].answer()
    answers[name].append({'status': started[name].last_words()} if answer is None else answer)

  try:
    for name, worker in workers:
      started[name], answers[name] = worker, []
      take(name)
    for number in range(max(map(rounds, started), default=0)):
      for name, worker in started.items():
        if number < rounds(name) and 'status' not in answers[name][-1]:
          worker.ask()
          take(name)
  finally:
    for worker in started.values():
      worker.close()
  return answers


def serve(build: Callable[[], Answer | tuple[Answer, Call]], lines: Iterable[str] | None = None) -> None:
  """Answers with a line of JSON when something is built, and with another after each timed call.

  Args:
    build: returns what is to be said of it in the first line, and what is timed, if anything.
    lines: ask for a call each; None = standard input.

  Raises:
    SystemExit: with a sentence, where memory ran out.
  """
  limit = _limit_memory()
  try:
    start = time.perf_counter()
    built = build()
    facts, call = built if isinstance(built, tuple) else (built, None)
    _reply(start, facts)
    for _ in () if call is None else sys.stdin if lines is None else lines:
      start = time.perf_counter()
      call()
      _reply(start, {})
  except (MemoryError, RuntimeError) as error:
    if isinstance(error, MemoryError) or re.search('memory|RESOURCE_EXHAUSTED', str(error)):
      raise SystemExit(f'out of memory: the limit was {limit / 1e9:.1f} GB') from None
    raise


def _reply(start: float, facts: Answer) -> None:
  seconds = time.perf_counter() - start
  print(json.dumps({'seconds': seconds, 'peak_gigabytes': peak_bytes() / 1e9, **facts}), flush=True)


def _limit_memory() -> float:
  """Holds this process to `FREE_MEMORY_SHARE` of what is free now, so that it fails by itself; the limit in bytes.

  Without a limit the system would end some process, and not always the one that asked for too much.
  """
  if sys.platform != 'linux':
    return math.inf
  import resource

  available = next(line for line in Path('/proc/meminfo').read_text().splitlines() if line.startswith('MemAvailable'))
  limit = int(FREE_MEMORY_SHARE * 1024 * int(available.split()[1]))
  resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
  return limit


if __name__ == '__main__':
  module, function = sys.argv[1].split(':')
  serve(functools.partial(getattr(importlib.import_module(module), function), **json.loads(sys.argv[2])))
