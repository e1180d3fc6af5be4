"""Functions called in a process of their own: what they answer, and what is said of one that fails."""

from __future__ import annotations

import json

import pytest

from perceiver_lib.experiments import workers

HERE = 'tests.experiments.test_workers'


def built(number):
  print('what a package prints by itself')
  return {'twice': 2 * number}


def called(number):
  if not number:
    raise KeyError('nothing')
  return {'ready': number}, lambda: None


def test_a_function_answers_from_a_process_of_its_own():
  answer = workers.in_fresh_process(f'{HERE}:built', number=21)
  assert answer['twice'] == 42 and answer['seconds'] > 0 and answer['peak_gigabytes'] > 0.005


def test_a_process_that_fails_says_why():
  with pytest.raises(RuntimeError, match=r"called with \{'number': 0\} gave no answer: KeyError: 'nothing'"):
    workers.in_fresh_process(f'{HERE}:called', number=0)


def test_processes_answer_in_turn_and_one_that_ended_has_a_status():
  named = ((number, workers.Worker(f'{HERE}:called', {'number': number})) for number in (3, 0, 1))
  answers = workers.answers_in_turn(named, rounds=lambda number: number)
  assert {number: len(of_number) for number, of_number in answers.items()} == {3: 4, 0: 1, 1: 2}
  assert answers[3][0]['ready'] == 3 and 'ready' not in answers[3][1]
  assert answers[0] == [{'status': "KeyError: 'nothing'"}]


def test_a_worker_answers_before_and_after_each_line(capsys, monkeypatch):
  monkeypatch.setattr(workers, '_limit_memory', lambda: 1e9)
  calls = []
  workers.serve(lambda: ({'num_bytes': 7}, lambda: calls.append(1)), lines=['run', 'run'])
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == 3 and len(calls) == 2 and all(line['peak_gigabytes'] > 0 for line in lines)
  assert [line.get('num_bytes') for line in lines] == [7, None, None]


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate")])
def test_what_needs_too_much_memory_says_its_limit(error, monkeypatch):
  monkeypatch.setattr(workers, '_limit_memory', lambda: 2e9)

  def build():
    raise error

  with pytest.raises(SystemExit, match='out of memory: the limit was 2'):
    workers.serve(build, lines=[])


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
  monkeypatch.setattr(workers, '_limit_memory', lambda: 2e9)

  def build():
    raise RuntimeError('shapes differ')

  with pytest.raises(RuntimeError, match='shapes differ'):
    workers.serve(build, lines=[])
