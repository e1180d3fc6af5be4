"""Interleaved timing of contenders: each lives in a process of its own, and the rounds visit them in turn.

Two contenders never compute at once, so drift of the machine hits all of them, and a ratio is taken within a round. The
result is a JSON file that keeps one entry a case with the stamp of the machine that measured it; another run replaces
only the cases that it measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.environment import environment_stamp, kernel_environment, peak_bytes
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import project_root, read_json, write_json

Call = Callable[[], None]

FREE_MEMORY_SHARE = 0.85
"""Of the memory that is free when a contender starts: what it may take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
  """One way to do the work.

  Attributes:
    build: makes everything that is not timed; each call of what it returns is one timed unit and ends when its result
      is there.
    package: what it needs to import, '' = this library alone.
    note: how it differs from the others, for the reader of the table.
  """

  build: Callable[[], Call]
  package: str = ''
  note: str = ''

  @property
  def is_installed(self) -> bool:
    return not self.package or all(importlib.util.find_spec(name) for name in self.package.split('+'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """The same work done by several contenders; ratios are against the first one.

  Attributes:
    title: what is computed, with every size that matters.
    contenders: by the name that tables show.
    amount, unit: how much work a call is, such as 256 tokens; rates are given in it.
  """

  title: str
  contenders: Mapping[str, Contender]
  amount: float = 1.0
  unit: str = 'calls'


def measure(name: str, case: Case, rounds: int) -> dict[str, Any]:
  """Times a case.

  Returns:
    `title`, `unit`, `rounds`, `stamp` and `contenders`: by name, `median_seconds` with `smallest_seconds` and
    `largest_seconds`, the `rate` in units a second, `peak_gigabytes` of the process, `first_call_seconds` with imports
    and compilation, and `ratio` of the first contender's time to this one's: `median`, `smallest`, `largest` over the
    rounds. A contender that is not installed or that failed has a `status` instead.
  """
  rows: dict[str, dict[str, Any]] = {}
  workers: dict[str, Worker] = {}
  answers: dict[str, list[dict[str, float]]] = {}
  try:
    for contender, what in case.contenders.items():
      if not what.is_installed:
        rows[contender] = {'status': 'not installed'}
        continue
      worker = Worker('perceiver_lib', 'bench', name, '--worker', contender)
      if (ready := worker.answer()) is None:
        rows[contender] = {'status': f'failed: {worker.last_words()}'}
        continue
      workers[contender], answers[contender] = worker, []
      rows[contender] = {'first_call_seconds': ready['seconds']}
    for _ in range(rounds):
      for contender, worker in list(workers.items()):
        worker.ask()
        if (answer := worker.answer()) is None:
          rows[contender] = {'status': f'failed: {worker.last_words()}'}
          del workers[contender], answers[contender]
        else:
          answers[contender].append(answer)
  finally:
    for worker in workers.values():
      worker.close()
  reference = next(iter(case.contenders))
  for contender, measured in answers.items():
    seconds = [answer['seconds'] for answer in measured]
    rows[contender] |= {
      **_spread(seconds, suffix='_seconds'),
      'rate': case.amount / statistics.median(seconds),
      'peak_gigabytes': measured[-1]['peak_gigabytes'],
    }
    if reference in answers and contender != reference:
      pairs = zip((answer['seconds'] for answer in answers[reference]), seconds, strict=True)
      rows[contender]['ratio'] = _spread([ours / theirs for ours, theirs in pairs])
  for contender, what in case.contenders.items():
    rows[contender] |= {'note': what.note} if what.note else {}
  order = {contender: rows[contender] for contender in case.contenders}
  stamp = environment_stamp(project_root()) | {'time': time.strftime('%Y-%m-%d %H:%M', time.gmtime())}
  for private in ('executable', 'compilation_cache'):
    stamp.pop(private)
  return {'title': case.title, 'unit': case.unit, 'rounds': rounds, 'contenders': order, 'stamp': dict(stamp)}


def _spread(values: Sequence[float], suffix: str = '') -> dict[str, float]:
  named = {'median': statistics.median(values), 'smallest': min(values), 'largest': max(values)}
  return {f'{name}{suffix}': value for name, value in named.items()}


class Worker:
  """`python -m module arguments`: a process that makes one timed call for every line that it is sent, see `serve`."""

  def __init__(self, module: str, *arguments: Any):
    command = [sys.executable, '-m', module, *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = kernel_environment() | {'TOKENIZERS_PARALLELISM': 'false'}
    self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

  def ask(self) -> None:
    if self._process.poll() is None:
      self._process.stdin.write('run\n')
      self._process.stdin.flush()

  def answer(self) -> dict[str, Any] | None:
    """The next line of numbers; None if the process has ended. What a package prints by itself is passed over."""
    for line in self._process.stdout:
      if line.startswith('{"seconds"'):
        return json.loads(line)
    return None

  def last_words(self) -> str:
    _, errors = self._process.communicate()
    status = self._process.returncode
    return (
      'killed, probably out of memory' if status == -9 else (errors.strip().splitlines() or [f'status {status}'])[-1]
    )

  def close(self) -> None:
    self._process.communicate()


def work(case: Case, contender: str, lines: Iterable[str] | None = None) -> None:
  """What a worker does: builds, calls once, and then once for every line on standard input."""

  def build() -> tuple[Call, dict[str, Any]]:
    call = case.contenders[contender].build()
    call()
    return call, {}

  serve(build, lines)


def serve(build: Callable[[], tuple[Call, dict[str, Any]]], lines: Iterable[str] | None = None) -> None:
  """Answers with a line of JSON when something is built, and with another after each timed call.

  Args:
    build: makes what is timed, and what else is to be said of it in the first line.
    lines: ask for a call each; None = standard input.

  Raises:
    SystemExit: with a sentence, where memory ran out.
  """
  limit = _limit_memory()
  try:
    start = time.perf_counter()
    call, facts = build()
    _reply(start, **facts)
    for _ in sys.stdin if lines is None else lines:
      start = time.perf_counter()
      call()
      _reply(start)
  except (MemoryError, RuntimeError) as error:
    if isinstance(error, MemoryError) or re.search('memory|RESOURCE_EXHAUSTED', str(error)):
      raise SystemExit(f'out of memory: the limit was {limit / 1e9:.1f} GB') from None
    raise


def _reply(start: float, **facts: Any) -> None:
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


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The measurements as Markdown, a row a contender."""
  rows = ['| case | contender | median (spread) | rate | memory | first / this, in turn |', '|---|---|---|---|---|---|']
  for name, result in results.items():
    for contender, row in result['contenders'].items():
      if 'status' in row:
        rows.append(f'| {name} | {contender} | {row["status"]} | | | |')
        continue
      seconds = [row[f'{which}_seconds'] for which in ('median', 'smallest', 'largest')]
      time_text = '{:.3g} s ({:.3g} to {:.3g})'.format(*seconds)
      ratio = '{median:.2f} ({smallest:.2f} to {largest:.2f})'.format(**row['ratio']) if 'ratio' in row else '1'
      rate = f'{row["rate"]:.4g} {result["unit"]}/s'
      rows.append(f'| {name} | {contender} | {time_text} | {rate} | {row["peak_gigabytes"]:.2f} GB | {ratio} |')
  return '\n'.join(rows)


def measure_all(cases: Mapping[str, Case], names: Sequence[str], *, rounds: int, out: Path | None) -> dict[str, Any]:
  """Measures the named cases (none = all), prints each as it is done, and writes after each, so a kill loses one.

  Raises:
    RequestError: for an unknown case, or fewer than one round.
  """
  for name in names:
    if name not in cases:
      raise RequestError(f'No case {name!r}; there are {", ".join(cases)}.')
  if rounds < 1:
    raise RequestError(f'--rounds must be 1 or more; got {rounds}.')
  results: dict[str, Any] = {}
  for name in names or cases:
    results[name] = measure(name, cases[name], rounds)
    print(f'{name}: {cases[name].title}\n\n{table({name: results[name]})}\n', flush=True)
    if out is not None:
      write_json(out, (read_json(out) or {}) | {name: results[name]})
  return results
