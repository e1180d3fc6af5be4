"""The benchmark command: what it does with contenders that are missing, that fail, and that answer."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from perceiver_lib import __main__ as command_line
from perceiver_lib.experiments.bench import cases, harness
from perceiver_lib.experiments.bench.harness import Case, Contender


class Script(harness.Worker):
  """Stands in for a process: a list of seconds, where None is its death."""

  answers: ClassVar = {'first': [9.0, 1.0, 2.0, 3.0], 'other': [9.0, 2.0, 8.0, 3.0], 'dies': [9.0, 1.0, None]}

  def __init__(self, *arguments):
    self.left = list(self.answers[arguments[-1]])

  def ask(self):
    pass

  def answer(self):
    seconds = self.left.pop(0)
    return None if seconds is None else {'seconds': seconds, 'peak_gigabytes': 0.5}

  def last_words(self):
    return 'MemoryError'

  def close(self):
    pass


def case_of(*names, **packages):
  build = lambda: lambda: None  # noqa: E731
  return Case(
    title='nothing, three times',
    contenders={name: Contender(build=build, package=packages.get(name, '')) for name in names},
    amount=6,
    unit='things',
  )


def test_ratios_are_taken_within_a_round_and_failures_have_a_status(monkeypatch):
  monkeypatch.setattr(harness, 'Worker', Script)
  result = harness.measure('case', case_of('first', 'other', 'dies', 'absent', absent='no_such_package'), rounds=3)
  rows = result['contenders']
  assert rows['first']['median_seconds'] == 2.0 and rows['first']['rate'] == 3.0 and 'ratio' not in rows['first']
  assert rows['other']['ratio'] == {'median': 0.5, 'smallest': 0.25, 'largest': 1.0}
  assert rows['dies']['status'] == 'failed: MemoryError' and 'median_seconds' not in rows['dies']
  assert rows['absent'] == {'status': 'not installed'}
  assert list(rows) == ['first', 'other', 'dies', 'absent']
  text = harness.table({'case': result})
  assert 'not installed' in text and '0.50 (0.25 to 1.00)' in text and '3 things/s' in text


def test_a_file_keeps_the_cases_that_were_not_measured_now(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(harness, 'Worker', Script)
  out = tmp_path / 'bench.json'
  out.write_text('{"earlier": {"title": "stays"}}')
  harness.measure_all({'now': case_of('first')}, [], rounds=2, out=out)
  written = json.loads(out.read_text())
  assert written['earlier'] == {'title': 'stays'} and written['now']['rounds'] == 2
  assert 'executable' not in written['now']['stamp']
  assert 'nothing, three times' in capsys.readouterr().out


def test_a_worker_answers_before_and_after_each_line(capsys, monkeypatch):
  monkeypatch.setattr(harness, '_limit_memory', lambda: 1e9)
  calls = []
  build = lambda: lambda: calls.append(1)  # noqa: E731
  harness.work(Case(title='', contenders={'one': Contender(build=build)}), 'one', lines=['run', 'run'])
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == len(calls) == 3 and all(line['peak_gigabytes'] > 0 for line in lines)


def test_a_process_answers_and_a_failing_one_says_why():
  worker = harness.Worker('perceiver_lib', 'bench', 'matmul', '--worker', 'JAX, float32')
  assert worker.answer()['seconds'] > 0
  worker.ask()
  assert 0 < worker.answer()['seconds'] < 60
  worker.close()
  broken = harness.Worker('perceiver_lib', 'bench', 'matmul', '--worker', 'nobody')
  assert broken.answer() is None
  assert "KeyError: 'nobody'" in broken.last_words()


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate")])
def test_what_needs_too_much_memory_says_its_limit(error, monkeypatch):
  monkeypatch.setattr(harness, '_limit_memory', lambda: 2e9)

  def build():
    raise error

  with pytest.raises(SystemExit, match='out of memory: the limit was 2'):
    harness.serve(build, lines=[])


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
  monkeypatch.setattr(harness, '_limit_memory', lambda: 2e9)

  def build():
    raise RuntimeError('shapes differ')

  with pytest.raises(RuntimeError, match='shapes differ'):
    harness.serve(build, lines=[])


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [(['huge'], "No case 'huge'; there are matmul, language"), (['matmul', '--rounds', '0'], '--rounds must be 1')],
)
def test_bad_requests_are_refused(arguments, sentence, capsys):
  assert command_line.main(['bench', *arguments]) == 2
  assert sentence in capsys.readouterr().err


def test_the_list_shows_sizes_and_contenders(capsys):
  assert command_line.main(['bench', '--list']) == 0
  text = capsys.readouterr().out
  assert '201,108,230 parameters' in text and 'krasserm perceiver-io 0.11' in text
  assert all(name in text for name in cases.CASES)
