"""The benchmark command: what it does with contenders that are missing, that fail, and that answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import ClassVar

import pytest

from perceiver_lib import __main__ as command_line
from perceiver_lib.experiments.bench import cases, committed, harness
from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.workers import Worker


class Script(Worker):
  """Stands in for a process: a list of seconds, where None is its death."""

  answers: ClassVar = {'first': [9.0, 1.0, 2.0, 3.0], 'other': [9.0, 2.0, 8.0, 3.0], 'dies': [9.0, 1.0, None]}

  def __init__(self, *arguments):
    self.left = list(self.answers[arguments[-1]['name']])

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


def test_a_contender_is_built_and_called_once_in_a_process_of_its_own():
  worker = Worker('perceiver_lib.experiments.bench.cases:contender', {'case': 'matmul', 'name': 'JAX, float32'})
  assert worker.answer()['seconds'] > 0
  worker.ask()
  assert 0 < worker.answer()['seconds'] < 60
  worker.close()


def test_a_process_that_measures_another_package_does_not_carry_jax():
  code = 'import sys; from perceiver_lib.experiments.bench import cases; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


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


def result_of(**contenders):
  stamp = {'time': '2026-01-02 03:04', 'device': 'CPU, 2 cores'}
  return {'title': '', 'stamp': stamp, 'contenders': contenders}


def test_ratios_to_peers_and_what_has_none(tmp_path):
  ours = {'median_seconds': 1.0, 'peak_gigabytes': 0.5}
  theirs = {
    'median_seconds': 2.0,
    'peak_gigabytes': 5.0,
    'ratio': {'median': 0.5, 'smallest': 0.4, 'largest': 0.6},
  }
  others = {'lucidrains': theirs, 'Hugging Face': {'status': 'not installed'}, 'ours in parts': theirs}
  results = {
    'wide-64k-train (this run)': result_of(perceiver_lib=ours, **others),
    'ar-generate': result_of(perceiver_lib=ours, lucidrains=theirs),
    'matmul-account-train': result_of(perceiver_lib=ours, lucidrains=theirs),
    'matmul': result_of(jax=ours, torch=theirs),
  }
  path = tmp_path / 'bench.json'
  path.write_text(json.dumps(results))
  read = committed.committed_results(path)
  assert committed.ratios(read) == {
    '65,536 wide inputs: training (this run), lucidrains': {
      'time': [0.5, 0.4, 0.6],
      'peak memory of the process': [0.1],
    }
  }
  text = str(committed.peers_table(read))
  assert (
    '| 65,536 wide inputs: training (this run) | Hugging Face | not installed |' in text
    and '| lucidrains (no cache) |' in text
    and 'parts' not in text
    and 'matmul' not in text
    and '2026-01-02 03:04' in text
  )
  assert committed.committed_results(tmp_path / 'nowhere.json') == {}
