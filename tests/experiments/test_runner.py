"""The runner on tiny notebooks with one fault each: nothing is green that did not happen, nothing stops the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from perceiver_lib.experiments import attempt, processes, report, runner
from perceiver_lib.experiments.environment import kernel_environment
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import read_records
from perceiver_lib.experiments.processes import run_limited
from perceiver_lib.experiments.run import METRIC_MIME_TYPE
from perceiver_lib.files import locked, read_json
from tests.experiments.sequence import FIGURE, GOOD, METRIC, START, write_notebook

FAULTS = {
  '00_raises': ("raise ValueError('shape [3, 5] does not fit [7, 11]')",),
  '01_exits': ('import sys\nsys.exit(0)', 'run.finish()'),
  '02_dies': (START, METRIC, 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)', 'run.finish()'),
  '03_good': GOOD,
}


def silent(line: str) -> None:
  pass


@pytest.fixture(scope='module')
def faulty(tmp_path_factory):
  """One run over all faults: its folder and the results by notebook."""
  root = tmp_path_factory.mktemp('faulty')
  for name, cells in FAULTS.items():
    write_notebook(root / 'notebooks', name, *cells)
  folder, results = runner.reproduce(root / 'notebooks', profile='smoke', jobs=2, say=silent)
  return folder, {result.notebook: result for result in results}


@pytest.mark.parametrize(
  ('name', 'status', 'words'),
  [
    ('00_raises', 'failed', 'cell In [3] raised ValueError: shape [3, 5] does not fit [7, 11]'),
    ('01_exits', 'failed', 'stopped early: 2 code cells did not complete, the first is cell 3'),
    ('02_dies', 'kernel died', 'too little memory'),
    ('03_good', 'complete', ''),
  ],
)
def test_each_notebook_ends_as_what_it_is_and_the_next_one_runs(faulty, name, status, words):
  folder, results = faulty
  assert results[name].status == status
  assert words in results[name].message
  assert read_json(folder / name / 'result.json')['status'] == status
  assert (folder / name / 'reader.html').is_file()


def test_the_exit_code_tells_the_kind_of_failure(faulty):
  _, results = faulty
  assert runner.exit_code(list(results.values())) == 1
  assert runner.exit_code([results['02_dies'], results['03_good']]) == 5
  assert runner.exit_code([results['03_good']]) == 0


def test_what_a_dead_kernel_had_measured_is_kept_and_reported(faulty):
  folder, _ = faulty
  assert [record['value'] for record in read_records(folder / '02_dies' / 'metrics.jsonl')] == [93.0]
  page = {notebook['name']: notebook for notebook in report.collect(folder)['notebooks']}
  assert page['02_dies']['metrics'][0]['value'] == '93 %'


def test_metrics_and_pictures_travel_inside_the_executed_notebook(faulty):
  folder, _ = faulty
  cells = read_json(folder / '03_good' / 'executed.ipynb')['cells']
  shown = [output['data'] for cell in cells for output in cell.get('outputs', []) if 'data' in output]
  [metric] = [data[METRIC_MIME_TYPE] for data in shown if METRIC_MIME_TYPE in data]
  assert metric['value'] == 93.0 and metric['baseline'] == 'majority class'
  assert sum('image/png' in data for data in shown) == 1


def test_pages_for_readers_fold_the_code_describe_the_figures_and_load_nothing(faulty):
  folder, _ = faulty
  reader = (folder / '03_good' / 'reader.html').read_text()
  assert reader.count('<details class="code">') == reader.count('jp-CodeCell jp') and 'start_run' in reader
  assert not re.search(r'(src|href)="?(https?:)?//|import\(', reader)
  assert 'alt="A line that goes up and down."' in reader
  assert 'accuracy  93 %   (majority class 10 %)' in reader
  assert '<title>A tiny one</title>' in reader


def test_the_report_shows_every_notebook_and_needs_nothing_from_outside(faulty):
  folder, _ = faulty
  page = (folder / 'index.html').read_text()
  assert all(f'<article id="{name}">' in page for name in FAULTS)
  assert '1 of 4 notebooks complete' in page and 'Its numbers are not results' in page
  assert 'http://' not in page and 'https://' not in page
  assert 'alt="A line that goes up and down."' in page and 'majority class' in page
  assert page.count('src="data:image/png;base64,') == 1
  links = {part.split('"')[0] for part in page.split('href="')[1:]}
  assert all((folder / link).is_file() for link in links if not link.startswith('#'))


def test_the_summary_says_what_was_learned_and_where_the_report_is(faulty):
  folder, _ = faulty
  lines = report.learned(folder).splitlines()
  assert lines[1].startswith('smoke profile: 1 of 4 notebooks complete')
  assert any(line.startswith('ok   03_good') for line in lines) and any(
    line.startswith('FAIL 01_exits') for line in lines
  )
  assert any('93 %' in line and 'majority class 10 %' in line for line in lines)
  assert lines[-1] == f'Report: {folder / "index.html"}'


def test_a_killed_runner_takes_its_notebook_with_it_and_resuming_runs_only_what_is_not_complete(tmp_path):
  pids, slow, notebooks, mine = tmp_path / 'pids', tmp_path / 'slow', tmp_path / 'notebooks', tmp_path / 'mine'
  slow.touch()
  wait = f"""
import os, time
checkpoints = run.checkpoint('main').directory
checkpoints.mkdir(parents=True, exist_ok=True)
open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')
while os.path.exists({str(slow)!r}):
  time.sleep(0.1)"""
  write_notebook(notebooks, '00_good', *GOOD)
  write_notebook(notebooks, '01_slow', START, METRIC, wait, FIGURE, 'run.finish()')
  command = [sys.executable, '-m', 'perceiver_lib', 'reproduce', '--profile', 'smoke', '--set', 'seed=3']
  process = subprocess.Popen(
    [*command, '--notebooks', str(notebooks), '--run-dir', str(mine)],
    stdout=subprocess.DEVNULL,
    env=kernel_environment(),
  )
  deadline = time.monotonic() + 120
  while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:
    time.sleep(0.1)
  process.kill()
  process.wait()
  assert not any(_alive(int(pid)) for pid in pids.read_text().split())
  page = report.collect(mine)
  assert [notebook['status'] for notebook in page['notebooks']] == ['complete', 'not run']

  slow.unlink()
  kept = (mine / '00_good' / 'executed.ipynb').stat().st_mtime_ns
  with pytest.raises(RequestError, match='is a smoke run; it cannot be resumed as demo'):
    runner.reproduce(notebooks, profile='demo', resume=mine)
  with pytest.raises(RequestError, match='resume it without --set'):
    runner.reproduce(notebooks, overrides={'seed': '4'}, resume=mine)
  folder, results = runner.reproduce(notebooks, resume=mine, say=silent)
  assert folder == mine and [result.status for result in results] == ['complete', 'complete']
  assert (mine / '00_good' / 'executed.ipynb').stat().st_mtime_ns == kept
  assert read_json(mine / '01_slow' / 'manifest.json')['seed'] == 3
  assert read_json(mine / '01_slow' / 'manifest.json')['metrics']['accuracy']['value'] == 93.0
  assert (mine / '01_slow' / 'checkpoints').is_dir()
  assert (mine / '01_slow' / 'earlier' / '1' / 'metrics.jsonl').is_file()


def test_a_notebook_that_hangs_is_stopped_with_everything_it_started(tmp_path, monkeypatch):
  pids, clock = tmp_path / 'pids', time.monotonic
  monkeypatch.setattr(time, 'monotonic', lambda: clock() + 1000 * (pids.exists() and pids.read_text() != ''))
  cell = f"""
import os, subprocess, time
child = subprocess.Popen(['sleep', '600'], start_new_session=True)
open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')
time.sleep(600)"""
  write_notebook(tmp_path / 'notebooks', '00_hangs', cell)
  folder, [result] = runner.reproduce(tmp_path / 'notebooks', profile='smoke', time_limit=600, say=silent)
  assert result.status == 'time limit' and 'stopped at the limit of 10 min 00 s' in result.message
  assert runner.exit_code([result]) == 4
  assert not any(_alive(int(pid)) for pid in pids.read_text().split())
  assert (folder / 'index.html').is_file()


def test_an_interrupted_child_is_gone_before_the_interrupt_goes_on(tmp_path):
  seen = []

  def interrupt(seconds):
    seen.extend(psutil.Process().children(recursive=True))
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_limited(['sleep', '600'], log=tmp_path / 'log', cwd=tmp_path, environment=os.environ, limit=60, tick=interrupt)
  assert seen and not any(_alive(process.pid) for process in seen)


def test_what_a_child_left_running_is_ended_with_it_and_what_an_earlier_one_left_before(tmp_path, monkeypatch):
  pid, log = tmp_path / 'pid', tmp_path / 'log'
  leave = ['sh', '-c', f'setsid sleep 600 & echo $! > {pid}']
  assert run_limited(leave, log=log, cwd=tmp_path, environment=os.environ, limit=60) == 0
  assert not _alive(int(pid.read_text()))
  with monkeypatch.context() as patch:  # a runner that is killed ends nothing
    patch.setattr(processes, 'end_started_for', silent)
    run_limited(leave, log=log, cwd=tmp_path, environment=os.environ, limit=60)
  left = int(pid.read_text())
  assert psutil.Process(left).is_running()
  other = ['sh', '-c', f'kill -0 {left}']
  assert run_limited(other, log=tmp_path / 'another', cwd=tmp_path, environment=os.environ, limit=60) == 0
  processes.end_started_for(log)
  assert not _alive(left)


@pytest.mark.parametrize(
  ('status', 'words'),
  [(3, 'ended with status 3'), (-11, 'was ended by SIGSEGV'), (-9, 'SIGKILL, most often for too little memory'),
   (-99, 'was ended by signal 99')],
)  # fmt: skip
def test_how_a_process_ended_is_said_in_words(status, words):
  assert processes.describe_exit(status).endswith(words)


def _alive(pid):
  """Whether a process runs on; it is given ten seconds to end, and a zombie that nobody has collected has ended."""
  for _ in range(100):
    try:
      if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
        return False
    except psutil.NoSuchProcess:
      return False
    time.sleep(0.1)
  return True


class Pretended:
  """Stands in for the process of a notebook: counts the starts and leaves the files that a real one would leave."""

  def __init__(self, outcome=('complete', ''), manifest=True, picture=b'picture', status=0, executed=None):
    self.starts, self.outcome, self.manifest, self.picture = 0, outcome, manifest, picture
    self.status, self.executed = status, executed

  def __call__(self, command, **_):
    self.starts += 1
    place = Path(command[-1])
    if self.outcome is not None:
      (place / 'outcome.json').write_text(json.dumps(dict(zip(('status', 'message'), self.outcome, strict=True))))
    (place / 'figures').mkdir()
    (place / 'figures' / 'curve.png').write_bytes(b'picture')
    figure = {'slug': 'curve', 'alt': 'x', 'files': {'curve.png': hashlib.sha256(self.picture).hexdigest()}}
    if self.manifest:
      environment = {'device': '', 'commit': '', 'uncommitted_changes': False}
      manifest = {'status': 'complete', 'problems': [], 'notebook': place.name, 'profile': 'demo', 'seed': 0,
                  'data': [], 'sizes': {}, 'finished': '', 'environment': environment, 'metrics': {},
                  'figures': [figure]}  # fmt: skip
      (place / 'manifest.json').write_text(json.dumps(manifest))
    (place / 'log.txt').write_text('Executing Cell 1----\nthe last word\nEnding Cell 1----\n')
    if self.executed is not None:
      (place / 'executed.ipynb').write_text(self.executed)
    return self.status


def reproduce_pretended(tmp_path, monkeypatch, pretended, **arguments):
  monkeypatch.setattr(attempt, 'run_limited', pretended)
  monkeypatch.setattr(report, 'write_report', silent)
  if not (tmp_path / 'notebooks').exists():
    write_notebook(tmp_path / 'notebooks', '00_good', *GOOD)
  return runner.reproduce(tmp_path / 'notebooks', say=silent, **arguments)


@pytest.mark.parametrize(
  ('pretended', 'words'),
  [
    (Pretended(manifest=False), 'every cell ran, but no run.finish()'),
    (Pretended(picture=b'another picture'), 'the manifest names figures/curve.png, which is not there'),
    (Pretended(outcome=None, status=-9), 'was ended by SIGKILL, most often for too little memory: the last word; see'),
    (Pretended(outcome=('kernel died', 'the kernel was ended by SIGSEGV')), 'by SIGSEGV: the last word; see log.txt'),
    (Pretended(executed='{"cells": [\n  {'), 'executed.ipynb is damaged and cannot be shown (NotJSONError)'),
    (Pretended(executed='[]'), 'executed.ipynb is damaged and cannot be shown'),
    (Pretended(outcome=('failed', 'cell In [3] raised')), 'cell In [3] raised'),
  ],
)
def test_cells_that_ran_are_not_enough(tmp_path, monkeypatch, pretended, words):
  folder, [result] = reproduce_pretended(tmp_path, monkeypatch, pretended)
  assert result.status == ('kernel died' if 'SIGSEGV' in words else 'failed')
  assert words in result.message
  assert read_json(folder / '00_good' / 'result.json') == dataclasses.asdict(result)


def test_a_result_is_on_the_disk_before_its_pages_are_made(tmp_path, monkeypatch):
  def full(executed, target, *, title):
    assert read_json(executed.parent / 'result.json')['status'] == 'complete'
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(attempt.pages, 'write_page', full)
  with pytest.raises(OSError, match='No space left'):
    reproduce_pretended(tmp_path, monkeypatch, Pretended())


@pytest.mark.parametrize('change', ['nothing', 'source', 'library', 'figure', 'manifest', 'value', 'result', 'request'])
def test_a_result_is_kept_only_while_all_of_it_still_holds(tmp_path, monkeypatch, change):
  pretended = Pretended()
  folder, _ = reproduce_pretended(tmp_path, monkeypatch, pretended)
  if change == 'source':
    write_notebook(tmp_path / 'notebooks', '00_good', *GOOD, 'print(1)')
  elif change == 'library':
    monkeypatch.setattr(attempt, 'library_hash', lambda: 'another')
  elif change == 'figure':
    (folder / '00_good' / 'figures' / 'curve.png').write_bytes(b'another')
  elif change == 'manifest':
    (folder / '00_good' / 'manifest.json').write_text('{"status": "comp')
  elif change == 'value':
    manifest = read_json(folder / '00_good' / 'manifest.json')
    (folder / '00_good' / 'manifest.json').write_text(json.dumps(manifest | {'seed': 1}))
  elif change in ('result', 'request'):
    (folder / '00_good' / f'{change}.json').write_bytes(b'\xff')
  _, [result] = reproduce_pretended(tmp_path, monkeypatch, pretended, resume=folder)
  assert result.status == 'complete'
  assert pretended.starts == (1 if change == 'nothing' else 2)


def test_nothing_starts_and_nothing_is_written_for_a_request_that_cannot_be_carried_out(tmp_path, monkeypatch):
  notebooks = tmp_path / 'notebooks'
  write_notebook(notebooks, '00_good', *GOOD)
  write_notebook(notebooks, '01_other', *GOOD, parameters="profile: str = 'demo'\nseed: int = 0\nrun_dir: str = ''")
  monkeypatch.setattr(attempt, 'run_limited', lambda *_, **__: pytest.fail('a notebook was started'))
  for arguments, words in (
    ({'profile': 'huge'}, "Unknown profile 'huge'"),
    ({'only': ['07']}, "No notebook '07'; there are 00_good, 01_other"),
    ({'overrides': {'width': '5'}}, "01_other has no parameter 'width'"),
    ({'only': ['00'], 'overrides': {'width': 'wide'}}, "'width' must be int; got 'wide'"),
    ({'overrides': {'profile': 'demo'}}, 'use --profile'),
    ({'overrides': {'run_dir': 'x'}}, 'use --run-dir'),
    ({'resume': tmp_path / 'nowhere'}, 'is not the folder of a run'),
    ({'resume': tmp_path, 'run_dir': tmp_path}, 'leave --run-dir out'),
    ({'run_dir': notebooks}, 'is not empty and stays as it is'),
    ({'budget': 0.0}, 'budget must be a number of seconds above 0'),
    ({'jobs': 0}, 'At least one notebook'),
  ):
    with pytest.raises(RequestError, match=words):
      runner.reproduce(notebooks, **arguments)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['notebooks']
  assert sorted(path.name for path in notebooks.iterdir()) == ['00_good.ipynb', '01_other.ipynb', 'bands.json']


def test_every_new_run_has_a_folder_of_its_own_and_one_runner(tmp_path, monkeypatch):
  folders = [reproduce_pretended(tmp_path, monkeypatch, Pretended())[0] for _ in range(3)]
  assert len(set(folders)) == 3
  with locked(folders[0] / '.lock', ValueError()), pytest.raises(RequestError, match='Another runner is working'):
    reproduce_pretended(tmp_path, monkeypatch, Pretended(), resume=folders[0])


def test_a_disk_that_is_nearly_full_is_noticed_before_the_start(tmp_path, monkeypatch):
  pretended, usage = Pretended(), runner.shutil.disk_usage(tmp_path)._replace(free=3)
  monkeypatch.setattr(runner.shutil, 'disk_usage', lambda folder: usage)
  with pytest.raises(RequestError, match='Less than 100 MB are free'):
    reproduce_pretended(tmp_path, monkeypatch, pretended)
  assert pretended.starts == 0


@pytest.mark.parametrize('free', [2**40, 0])
def test_as_many_run_at_a_time_as_are_asked_for_and_memory_allows(tmp_path, monkeypatch, free):
  running, most, lock = 0, 0, threading.Lock()

  class Counting(Pretended):
    def __call__(self, command, **settings):
      nonlocal running, most
      with lock:
        running += 1
        most = max(most, running)
      time.sleep(0.3)
      with lock:
        running -= 1
      return super().__call__(command, **settings)

  for name in ('00_good', '01_other', '02_third'):
    write_notebook(tmp_path / 'notebooks', name, *GOOD)
  memory = psutil.virtual_memory()._replace(available=free)
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: memory)
  _, results = reproduce_pretended(tmp_path, monkeypatch, Counting(), jobs=2)
  assert most == (2 if free else 1)
  assert [(result.notebook, result.status) for result in results] == [
    ('00_good', 'complete'), ('01_other', 'complete'), ('02_third', 'complete')
  ]  # fmt: skip


def test_an_interrupt_stops_all_that_run_and_the_next_one_never_starts(tmp_path, monkeypatch):
  started, stopped = [], []

  def endless(command, *, tick, **_):
    started.append(Path(command[-1]).name)
    try:
      while True:
        tick(0.0)
        time.sleep(0.01)
    finally:
      stopped.append(Path(command[-1]).name)

  def interrupted(running, **_):
    while len(started) < len(running):
      time.sleep(0.01)
    raise KeyboardInterrupt

  monkeypatch.setattr(runner, 'wait', interrupted)
  for name in ('00_good', '01_other', '02_third'):
    write_notebook(tmp_path / 'notebooks', name, *GOOD)
  with pytest.raises(KeyboardInterrupt, match='continue with: python -m perceiver_lib reproduce --resume'):
    reproduce_pretended(tmp_path, monkeypatch, endless, jobs=2)
  assert sorted(started) == sorted(stopped) == ['00_good', '01_other']


def test_a_budget_bounds_the_whole_run(tmp_path, monkeypatch):
  pretended = Pretended()
  folder, [result] = reproduce_pretended(tmp_path, monkeypatch, pretended, budget=1e-6)
  assert result.status == 'time limit' and 'budget' in result.message and pretended.starts == 0
  _, [result] = reproduce_pretended(tmp_path, monkeypatch, pretended, resume=folder, budget=600)
  assert result.status == 'complete' and pretended.starts == 1


def test_the_kernel_finds_this_library_and_leaves_the_memory_of_the_accelerator_to_others(monkeypatch):
  monkeypatch.setenv('PYTHONPATH', 'mine')
  environment = kernel_environment()
  first, *rest = environment['PYTHONPATH'].split(os.pathsep)
  assert (Path(first) / 'perceiver_lib' / 'tokens.py').is_file() and rest == ['mine']
  assert environment['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'true')
  assert kernel_environment()['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'true'
