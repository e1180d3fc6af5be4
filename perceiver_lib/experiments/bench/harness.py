"""Interleaved timing of contenders: each lives in a process of its own, and the rounds visit them in turn.

Two contenders never compute at once, so drift of the machine hits all of them, and a ratio is taken within a round. The
result is a JSON file that keeps one entry a case with the stamp of the machine that measured it; another run replaces
only the cases that it measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.environment import environment_stamp
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import project_root, write_json
from perceiver_lib.experiments.measuring import Call
from perceiver_lib.experiments.tables import markdown
from perceiver_lib.experiments.wording import describe_spread
from perceiver_lib.experiments.workers import Worker, answers_in_turn
from perceiver_lib.files import read_json


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
  function = 'perceiver_lib.experiments.bench.cases:contender'
  # A generator, so that none is built while another is: building is timed as well.
  workers = (
    (contender, Worker(function, {'case': name, 'name': contender}))
    for contender, what in case.contenders.items()
    if what.is_installed
  )
  answers = answers_in_turn(workers, lambda _: rounds)
  rows: dict[str, dict[str, Any]] = {contender: {'status': 'not installed'} for contender in case.contenders}
  seconds: dict[str, list[float]] = {}
  for contender, (*measured, last) in answers.items():
    if 'status' in last:
      rows[contender] = {'status': f'failed: {last["status"]}'}
      continue
    seconds[contender] = [answer['seconds'] for answer in (*measured[1:], last)]
    rows[contender] = {
      'first_call_seconds': measured[0]['seconds'],
      **_spread(seconds[contender], suffix='_seconds'),
      'rate': case.amount / statistics.median(seconds[contender]),
      'peak_gigabytes': last['peak_gigabytes'],
    }
  reference = next(iter(case.contenders))
  for contender in seconds.keys() - {reference} if reference in seconds else ():
    pairs = zip(seconds[reference], seconds[contender], strict=True)
    rows[contender]['ratio'] = _spread([ours / theirs for ours, theirs in pairs])
  for contender, what in case.contenders.items():
    rows[contender] |= {'note': what.note} if what.note else {}
  stamp = environment_stamp(project_root()) | {'time': time.strftime('%Y-%m-%d %H:%M', time.gmtime())}
  for private in ('executable', 'compilation_cache'):
    stamp.pop(private)
  return {'title': case.title, 'unit': case.unit, 'rounds': rounds, 'contenders': rows, 'stamp': dict(stamp)}


def _spread(values: Sequence[float], suffix: str = '') -> dict[str, float]:
  named = {'median': statistics.median(values), 'smallest': min(values), 'largest': max(values)}
  return {f'{name}{suffix}': value for name, value in named.items()}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The measurements as Markdown, a row a contender."""
  rows = []
  for name, result in results.items():
    for contender, row in result['contenders'].items():
      if 'status' in row:
        rows.append((name, contender, row['status'], '', '', ''))
        continue
      seconds = (row[f'{which}_seconds'] for which in ('median', 'smallest', 'largest'))
      ratio = describe_spread(**row['ratio'], form='.2f') if 'ratio' in row else '1'
      rate = f'{row["rate"]:.4g} {result["unit"]}/s'
      rows.append((name, contender, f'{describe_spread(*seconds)} s', rate, f'{row["peak_gigabytes"]:.2f} GB', ratio))
  return markdown(('case', 'contender', 'median (spread)', 'rate', 'memory', 'first / this, in turn'), rows)


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
      write_json(out, (read_json(out, {str: object}) or {}) | {name: results[name]})
  return results
