"""The runner, on tiny notebooks with one fault each: nothing is green that did not happen, and nothing stops the rest."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from perceiver_lib.experiments import report, runner
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import read_json, read_records
from perceiver_lib.experiments.processes import run_limited
from tests.experiments.sequence import FIGURE, GOOD, METRIC, START, write_notebook

FAULTS = {
  '00_good': GOOD,
  '01_raises': (START, METRIC, "raise ValueError('shape [3, 5] does not fit [7, 11]')", 'run.finish()'),
  '02_exits': (START, METRIC, FIGURE, 'import sys\nsys.exit(0)', 'run.finish()'),
  '03_dies': (START, METRIC, 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)', 'run.finish()'),
  '04_no_finish': (START, METRIC, FIGURE),
  '05_missing_metric': (START, FIGURE, 'run.finish()'),
  '06_out_of_band': GOOD,
  '07_good_after_all': (*GOOD, "print('reached the end')"),
}


@pytest.fixture(scope='module')
def faulty(tmp_path_factory):
  """One run over all faults: folder of the run, results by notebook, and what was said."""
  root = tmp_path_factory.mktemp('faulty')
  for name, cells in FAULTS.items():
    write_notebook(root / 'notebooks', name, *cells)
  bands = {'06_out_of_band': {'smoke': {'accuracy': {'min': 99, 'reason': 'a test'}}}}
  (root / 'notebooks' / 'bands.json').write_text(json.dumps(bands))
  said = []
  folder, results = runner.reproduce(root / 'notebooks', profile='smoke', say=said.append)
  return folder, {result.notebook: result for result in results}, said


@pytest.mark.parametrize(
  ('name', 'status', 'words'),
  [
    ('00_good', 'complete', ''),
    ('01_raises', 'failed', 'raised ValueError: shape [3, 5] does not fit [7, 11]'),
    ('02_exits', 'failed', 'stopped early: 2 code cells did not complete'),
    ('03_dies', 'kernel died', 'too little memory'),
    ('04_no_finish', 'failed', 'no run.finish() wrote a complete manifest'),
    ('05_missing_metric', 'failed', "metric 'accuracy' was declared but not logged"),
    ('06_out_of_band', 'failed', 'is 93, outside its band >= 99 (a test)'),
    ('07_good_after_all', 'complete', ''),
  ],
)
def test_each_notebook_ends_as_what_it_is(faulty, name, status, words):
  folder, results, _ = faulty
  assert results[name].status == status
  assert words in results[name].message
  assert read_json(folder / name / 'result.json')['status'] == status
  assert (folder / name / 'reader.html').is_file()


def test_a_run_with_different_failures_has_the_general_exit_code(faulty):
  _, results, _ = faulty
  assert runner.exit_code(list(results.values())) == 1
  assert runner.exit_code([results['00_good'], results['03_dies']]) == 5
  assert runner.exit_code([results['00_good']]) == 0


def test_what_a_dead_kernel_had_measured_is_kept_and_reported(faulty):
  folder, _, _ = faulty
  assert [record['value'] for record in read_records(folder / '03_dies' / 'metrics.jsonl')] == [93.0]
  page = {notebook['name']: notebook for notebook in report.collect(folder)['notebooks']}
  assert page['03_dies']['metrics'][0]['value'] == '93 %'


def test_metrics_and_pictures_travel_inside_the_executed_notebook(faulty):
  folder, _, _ = faulty
  cells = read_json(folder / '00_good' / 'executed.ipynb')['cells']
  outputs = [output['data'] for cell in cells for output in cell.get('outputs', []) if 'data' in output]
  [metric] = [
    data['application/vnd.perceiver.metric+json']
    for data in outputs
    if 'text/plain' in data and len(data) == 2 and 'application/vnd.perceiver.metric+json' in data
  ]
  assert metric['value'] == 93.0 and metric['baseline'] == 'majority class'
  assert sum('image/png' in data for data in outputs) == 1


def test_pages_for_readers_hide_the_code_and_describe_the_figures(faulty):
  folder, _, _ = faulty
  reader, full = ((folder / '00_good' / name).read_text() for name in ('reader.html', 'full.html'))
  assert 'start_run' in full and 'start_run' not in reader
  assert 'alt="A line that goes up and down."' in reader
  assert 'accuracy  93 %' in reader


def test_the_report_shows_every_notebook_and_needs_nothing_from_outside(faulty):
  folder, _, _ = faulty
  page = (folder / 'index.html').read_text()
  assert all(name in page for name in FAULTS)
  assert '2 of 8 notebooks complete' in page
  assert 'http://' not in page and 'https://' not in page
  assert 'alt="A line that goes up and down."' in page and 'majority class' in page
  assert page.count('src="data:image/png;base64,') == sum(
    (folder / n / 'manifest.json').exists() and bool(read_json(folder / n / 'manifest.json')['figures']) for n in FAULTS
  )


def test_the_summary_fits_on_a_screen_and_says_where_the_report_is(faulty):
  folder, _, _ = faulty
  summary = report.learned(folder)
  assert 'smoke profile: 2 of 8 notebooks complete' in summary
  assert 'ok   00_good' in summary and 'FAIL 01_raises' in summary
  assert 'majority class 10 %' in summary and 'OUTSIDE its band' in summary
  assert summary.rstrip().endswith(str(folder / 'index.html'))


def test_resuming_keeps_what_is_complete_and_runs_the_rest_again(tmp_path):
  marker = tmp_path / 'works now'
  write_notebook(tmp_path / 'notebooks', '00_good', *GOOD)
  write_notebook(tmp_path / 'notebooks', '01_fails_first', *GOOD[:-1], f'open({str(marker)!r})', 'run.finish()')
  folder, results = runner.reproduce(
    tmp_path / 'notebooks', profile='smoke', overrides={'seed': '3'}, run_dir=tmp_path / 'mine', say=lambda line: None
  )
  assert [result.status for result in results] == ['complete', 'failed']
  kept = (folder / '00_good' / 'executed.ipynb').stat().st_mtime_ns
  checkpoint = folder / '01_fails_first' / 'checkpoints' / '7'
  checkpoint.mkdir(parents=True)
  marker.touch()
  with pytest.raises(RequestError, match='cannot be resumed as demo'):
    runner.reproduce(tmp_path / 'notebooks', profile='demo', resume=folder)
  said = []
  again, results = runner.reproduce(tmp_path / 'notebooks', resume=folder, say=said.append)
  assert again == folder
  assert [result.status for result in results] == ['complete', 'complete']
  assert (folder / '00_good' / 'executed.ipynb').stat().st_mtime_ns == kept
  assert read_json(folder / '01_fails_first' / 'manifest.json')['seed'] == 3
  assert checkpoint.is_dir()
  assert read_json(folder / '01_fails_first' / 'earlier' / '1' / 'result.json')['status'] == 'failed'


@pytest.mark.parametrize('change', ['source', 'figure', 'manifest'])
def test_a_result_is_kept_only_while_all_of_it_still_holds(tmp_path, change, monkeypatch):
  path = write_notebook(tmp_path / 'notebooks', '00_good', *GOOD)
  ran = []

  def pretend(command, **_):
    place = Path(command[-1])
    ran.append(place.name)
    (place / 'figures').mkdir()
    (place / 'figures' / 'curve.png').write_bytes(b'picture')
    figure = {
      'slug': 'curve',
      'alt': 'x',
      'files': ['curve.png'],
      'sha256': runner.hashlib.sha256(b'picture').hexdigest(),
    }
    (place / 'outcome.json').write_text('{"status": "complete", "message": ""}')
    (place / 'manifest.json').write_text(json.dumps({'status': 'complete', 'figures': [figure]}))
    return 0

  monkeypatch.setattr(runner, 'run_limited', pretend)
  monkeypatch.setattr(report, 'write_report', lambda folder: None)
  folder, [result] = runner.reproduce(tmp_path / 'notebooks', profile='smoke', say=lambda line: None)
  assert result.status == 'complete'
  runner.reproduce(tmp_path / 'notebooks', resume=folder, say=lambda line: None)
  assert len(ran) == 1
  if change == 'source':
    write_notebook(tmp_path / 'notebooks', '00_good', *GOOD, 'print(1)')
  elif change == 'figure':
    (folder / '00_good' / 'figures' / 'curve.png').write_bytes(b'another')
  else:
    (folder / '00_good' / 'manifest.json').write_text('{"status": "comp')
  runner.reproduce(tmp_path / 'notebooks', resume=folder, say=lambda line: None)
  assert len(ran) == 2 and path.exists()


def test_a_notebook_that_hangs_is_stopped_with_everything_it_started(tmp_path):
  pids = tmp_path / 'pids'
  cell = f"""
import os, subprocess, time
child = subprocess.Popen(['sleep', '600'], start_new_session=True)
open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')
time.sleep(600)"""
  write_notebook(tmp_path / 'notebooks', '00_hangs', cell)
  folder, [result] = runner.reproduce(tmp_path / 'notebooks', profile='smoke', time_limit=6, say=lambda line: None)
  assert result.status == 'time limit' and 'stopped at the limit of 6 s' in result.message
  assert runner.exit_code([result]) == 4
  assert result.seconds < 20
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


def _alive(pid):
  """Whether a process runs; a zombie that nobody has collected does not."""
  for _ in range(20):
    if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
      return False
    time.sleep(0.1)
  return True


def test_nothing_starts_and_nothing_is_written_for_a_request_that_cannot_be_carried_out(tmp_path, monkeypatch):
  notebooks = tmp_path / 'notebooks'
  write_notebook(notebooks, '00_good', *GOOD)
  write_notebook(notebooks, '01_other', *GOOD, parameters="profile: str = 'demo'\nseed: int = 0\nrun_dir: str = ''")
  monkeypatch.setattr(runner, 'run_limited', lambda *_, **__: pytest.fail('a notebook was started'))
  for arguments, words in (
    ({'profile': 'huge'}, "Unknown profile 'huge'"),
    ({'only': ['07']}, "No notebook '07'; there are 00_good, 01_other"),
    ({'overrides': {'width': '5'}}, "01_other has no parameter 'width'"),
    ({'only': ['00'], 'overrides': {'width': 'wide'}}, "'width' must be int; got 'wide'"),
    ({'overrides': {'profile': 'demo'}}, 'use --profile'),
    ({'overrides': {'run_dir': 'x'}}, 'use --run-dir'),
    ({'resume': tmp_path / 'nowhere'}, 'cannot be resumed'),
    ({'resume': tmp_path, 'run_dir': tmp_path}, 'leave --run-dir out'),
    ({'run_dir': notebooks}, 'is not empty and stays as it is'),
  ):
    with pytest.raises(RequestError, match=words):
      runner.reproduce(notebooks, **arguments)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['notebooks']
  assert sorted(path.name for path in notebooks.iterdir()) == ['00_good.ipynb', '01_other.ipynb']


def test_two_runners_do_not_work_in_one_folder_and_new_runs_never_share_one(tmp_path):
  write_notebook(tmp_path / 'notebooks', '00_good', *GOOD)
  folders = {runner._new_folder(None, tmp_path, 'smoke') for _ in range(5)}
  assert len(folders) == 5
  folder = folders.pop()
  runner.write_json(folder / 'run.json', {'profile': 'smoke', 'only': [], 'overrides': {}, 'notebooks': {}})
  with runner._locked(folder), pytest.raises(RequestError, match='Another runner is working'):
    runner.reproduce(tmp_path / 'notebooks', resume=folder)


def test_a_disk_that_is_nearly_full_is_noticed_before_the_start(tmp_path, monkeypatch):
  write_notebook(tmp_path / 'notebooks', '00_good', *GOOD)
  usage = runner.shutil.disk_usage(tmp_path)._replace(free=3)
  monkeypatch.setattr(runner.shutil, 'disk_usage', lambda folder: usage)
  with pytest.raises(RequestError, match='Less than 100 MB are free'):
    runner.reproduce(tmp_path / 'notebooks', profile='smoke')


def test_a_killed_runner_takes_its_notebook_with_it_and_the_run_can_be_resumed(tmp_path):
  pids, slow = tmp_path / 'pids', tmp_path / 'slow'
  slow.touch()
  cell = f"""
import os, time
open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')
while os.path.exists({str(slow)!r}):
  time.sleep(0.1)"""
  write_notebook(tmp_path / 'notebooks', '00_slow', START, METRIC, cell, FIGURE, 'run.finish()')
  command = [
    sys.executable,
    '-m',
    'perceiver_lib',
    'reproduce',
    '--profile',
    'smoke',
    '--run-dir',
    str(tmp_path / 'mine'),
  ]
  process = subprocess.Popen([*command, '--notebooks', str(tmp_path / 'notebooks')], stdout=subprocess.DEVNULL)
  deadline = time.monotonic() + 60
  while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:
    time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.wait()
  for _ in range(100):
    if not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()):
      break
    time.sleep(0.1)
  assert not any(_alive(int(pid)) for pid in pids.read_text().split())
  slow.unlink()
  _, [result] = runner.reproduce(tmp_path / 'notebooks', resume=tmp_path / 'mine', say=lambda line: None)
  assert result.status == 'complete'


def test_full_disk_words():
  from perceiver_lib.experiments.errors import explain_os_error

  assert 'disk is full' in explain_os_error(OSError(errno.ENOSPC, 'No space left on device', 'x/metrics.jsonl'))
