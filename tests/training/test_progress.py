from __future__ import annotations

import re

import pytest

from perceiver_lib.training import progress
from perceiver_lib.training.progress import Progress


def test_silent_under_pytest(capfd):
  bar = Progress(10)
  assert bar.mode == 'silent'
  bar.say('a sentence')
  bar.report(5, {'loss': 1.0})
  assert not bar.due()
  assert capfd.readouterr() == ('', '')


def test_lines_are_whole_lines_with_rate_and_time_left(capfd):
  bar = Progress(1000, start=500, mode='lines')
  bar._begin -= 100.0
  bar.report(700, {'loss': 1.25})
  out, err = capfd.readouterr()
  # 200 steps of this process took 100 s, so the 300 that are left take 150 s; the 500 before it count nothing.
  assert re.fullmatch(r'step 700/1,000  loss 1\.25  2 steps/s  2 min 30 s left\n', out)
  assert '\r' not in out and not err


def test_lines_come_at_most_every_ten_seconds():
  bar = Progress(10, mode='lines')
  assert not bar.due()
  bar._last -= progress.SECONDS_BETWEEN_LINES
  assert bar.due()
  bar.report(1, {})
  assert not bar.due()


def test_bar_in_a_terminal_redraws_one_line_and_ends_it(capfd):
  bar = Progress(4, mode='bar')
  bar.report(2, {})
  bar.report(4, {})
  out, err = capfd.readouterr()
  assert not out
  assert err.count('\r') == 2 and err.count('\n') == 1 and err.endswith('\n')


@pytest.mark.parametrize(
  ('kernel', 'environment', 'mode'),
  [
    (True, {'JPY_SESSION_NAME': 'lesson.ipynb'}, 'bar'),
    (True, {'VSCODE_PID': '7'}, 'bar'),
    (True, {}, 'lines'),
    (False, {}, 'lines'),
    (False, {'PERCEIVER_PROGRESS': 'silent'}, 'silent'),
  ],
)
def test_auto_fits_the_place(monkeypatch, kernel, environment, mode):
  for name in ('PYTEST_CURRENT_TEST', 'PERCEIVER_PROGRESS', 'JPY_SESSION_NAME', 'VSCODE_PID'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(progress, 'in_notebook', lambda: kernel)
  monkeypatch.setattr('sys.stderr.isatty', lambda: False, raising=False)
  assert progress.resolve_mode() == mode


def test_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'auto', 'bar', 'lines' or 'silent'"):
    Progress(10, mode='loud')


@pytest.mark.parametrize(
  ('seconds', 'text'), [(0.4, '0 s'), (59.6, '1 min 00 s'), (3599.0, '59 min 59 s'), (7620.0, '2 h 07 min')]
)
def test_durations(seconds, text):
  assert progress.format_duration(seconds) == text
