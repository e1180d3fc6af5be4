"""The command line: help that helps, one sentence for what can't be done, and exit codes that scripts can read."""

from __future__ import annotations

import errno
import io
import subprocess
import sys

import pytest

import perceiver_lib
from perceiver_lib import __main__ as command_line
from perceiver_lib.experiments import attempt, errors, report, runner
from perceiver_lib.experiments.bench import harness
from perceiver_lib.experiments.environment import kernel_environment
from perceiver_lib.experiments.files import project_root
from perceiver_lib.experiments.tables import markdown
from perceiver_lib.pretrained import RELEASED
from tests.experiments.sequence import GOOD, write_notebook
from tests.pretrained.golden_files import golden


@pytest.fixture
def project(tmp_path, monkeypatch):
  write_notebook(tmp_path / 'notebooks', '00_good', *GOOD, title='The first')
  write_notebook(tmp_path / 'notebooks', '01_other', *GOOD, title='The second')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def call(*arguments):
  return command_line.main([str(argument) for argument in arguments])


@pytest.mark.parametrize('command', ['list', 'reproduce', 'report', 'figures', 'compare', 'bench', 'lab'])
def test_every_command_has_help(command, capsys):
  with pytest.raises(SystemExit) as stop:
    call(command, '--help')
  assert stop.value.code == 0
  assert '--notebooks DIR' in capsys.readouterr().out


def test_help_of_reproduce_explains_profiles_and_exit_codes(capsys):
  with pytest.raises(SystemExit):
    call('reproduce', '--help')
  text = capsys.readouterr().out
  assert all(word in text for word in ('smoke', 'demo', 'full', 'paper', 'exit codes', '130', '--resume', '--set'))


def test_list_shows_titles_and_parameters(project, capsys):
  assert call('list') == 0
  text = capsys.readouterr().out
  assert '00_good\n  The first' in text and 'width: int = 3' in text and 'of the tiny model' in text


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['reproduce', '--profile', 'huge'], "Unknown profile 'huge'; choose one of smoke, demo, full, paper."),
    (['reproduce', '--only', '07'], "No notebook '07'; there are 00_good, 01_other."),
    (['reproduce', '--set', 'depth=3'], "00_good has no parameter 'depth'"),
    (['reproduce', '--set', 'width=wide'], "Parameter 'width' must be int; got 'wide'."),
    (['reproduce', '--set', 'width'], "--set takes NAME=VALUE; got 'width'."),
    (['reproduce', '--resume', 'nowhere'], 'nowhere is not the folder of a run'),
    (['reproduce', '--run-dir', 'notebooks'], 'is not empty and stays as it is'),
    (['reproduce', '--set', 'rate=nan'], "Parameter 'rate' must be a finite number; got nan."),
    (['reproduce', '--set', 'rate=1e999'], "Parameter 'rate' must be a finite number; got inf."),
    (['reproduce', '--run-dir', 'no\udcffutf8'], 'is not UTF-8, so a run cannot record it'),
    *((['reproduce', '--time-limit', limit], 'seconds above 0; got') for limit in ('nan', '-5', '0', 'inf')),
    (['report'], 'No run in'),
    (['figures', '--run', 'notebooks'], 'not the folder of a run'),
    (['weights', '--run', 'notebooks'], 'not the folder of a run'),
    (['compare', 'notebooks', 'notebooks'], 'not the folder of a run'),
    (['list', '--notebooks', 'elsewhere'], 'No notebooks (NN_topic.ipynb)'),
  ],
)
def test_a_bad_request_is_one_sentence_and_nothing_is_left_behind(project, capsys, arguments, words):
  assert call(*arguments) == 2
  captured = capsys.readouterr()
  assert words in captured.err and captured.err.count('\n') == 1
  assert [path.name for path in project.iterdir()] == ['notebooks']


def test_an_unknown_command_or_option_is_a_usage_error(capsys):
  for arguments in (['reprodcue'], ['reproduce', '--fast'], []):
    with pytest.raises(SystemExit) as stop:
      call(*arguments)
    assert stop.value.code == 2


def test_a_run_folder_that_cannot_be_made_is_one_sentence(project, capsys):
  (project / 'a_file').write_text('mine')
  assert call('reproduce', '--run-dir', project / 'a_file' / 'run') == 3
  captured = capsys.readouterr()
  assert 'choose another one with --run-dir' in captured.err and captured.err.count('\n') == 1
  assert (project / 'a_file').read_text() == 'mine'


@pytest.mark.parametrize(
  ('code', 'words'),
  [(errno.ENOSPC, 'The disk is full: writing run.json failed'), (errno.EACCES, 'No permission to write')],
)
def test_an_error_of_the_disk_is_one_sentence(project, capsys, monkeypatch, code, words):
  def fail(path, value):
    raise OSError(code, 'text of the system', path.name)

  monkeypatch.setattr(runner, 'write_json', fail)
  assert call('reproduce') == 3
  captured = capsys.readouterr()
  assert words in captured.err and captured.err.count('\n') == 1


def test_reproduce_hands_over_its_options_and_ends_with_the_worst_result(project, capsys, monkeypatch):
  seen = {}

  def pretend(notebooks, **arguments):
    seen.update(arguments, notebooks=notebooks)
    return project / 'runs' / 'a', [runner.Result(notebook='00_good', status='time limit', seconds=1.0)]

  monkeypatch.setattr(runner, 'reproduce', pretend)
  monkeypatch.setattr(report, 'learned', lambda folder: f'Report: {folder}')
  options = ['--profile', 'smoke', '--only', '00,01', '--only', '02', '--set', 'seed=3', '--set', 'rate=1=2']
  assert call('reproduce', *options, '--time-limit', '7') == 4
  assert seen['only'] == ['00', '01', '02'] and seen['overrides'] == {'seed': '3', 'rate': '1=2'}
  assert seen['profile'] == 'smoke' and seen['time_limit'] == 7.0 and seen['notebooks'] == project / 'notebooks'
  assert 'Report: runs/a' in capsys.readouterr().out


@pytest.mark.parametrize('send', ['SIGINT', 'SIGTERM'])
def test_an_interrupted_command_says_how_to_go_on(project, send):
  """SIGTERM also where a shell lets its background jobs ignore SIGINT."""
  program = f"""
import os, signal, sys
from perceiver_lib import __main__ as command_line
from perceiver_lib.experiments import runner
signal.signal(signal.SIGINT, signal.SIG_IGN if {send!r} == 'SIGTERM' else signal.default_int_handler)
runner.reproduce = lambda *_, **__: os.kill(os.getpid(), signal.{send})
sys.exit(command_line.main(['reproduce']))"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=kernel_environment())
  assert done.returncode == 130
  assert '--resume' in done.stderr and 'Traceback' not in done.stderr


def test_an_interrupted_run_has_its_report_and_names_its_folder(project, capsys, monkeypatch):
  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(attempt, 'run_limited', interrupt)
  assert call('reproduce', '--run-dir', 'a run') == 130
  folder = project / 'a run'
  assert (
    capsys.readouterr().err == f"Interrupted; continue with: python -m perceiver_lib reproduce --resume '{folder}'\n"
  )
  assert '0 of 2 notebooks complete' in (folder / 'index.html').read_text()


def test_only_where_it_exists_is_an_option_advised(project, capsys, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, '', 'x')

  monkeypatch.setattr(report, 'latest_run', fail)
  assert call('report') == 3
  assert capsys.readouterr().err == 'The disk is full: writing x failed; free some space, or choose another folder.\n'


@pytest.mark.parametrize('stdout', ['closed', 'ascii'])
def test_list_reaches_every_kind_of_output(project, monkeypatch, stdout):
  write_notebook(project / 'notebooks', '02_umlaut', *GOOD, title='Größer ≥ 3 \N{SNOWMAN}')
  binary = io.BytesIO()
  monkeypatch.setattr('sys.stdout', None if stdout == 'closed' else io.TextIOWrapper(binary, encoding='ascii'))
  assert call('list') == 0
  said = binary.getvalue()
  sys.stdout.close()
  assert stdout == 'closed' or rb'Gr\xf6\xdfer \u2265 3 \u2603' in said


@pytest.mark.parametrize('root', [True, False])
def test_the_lab_starts_as_root_behind_the_loopback(monkeypatch, root):
  started = []

  def become(program, command, environment):
    started.extend(command)
    raise SystemExit

  monkeypatch.setattr(command_line.os, 'geteuid', lambda: 0 if root else 1000)
  monkeypatch.setattr(command_line.os, 'execve', become)
  with pytest.raises(SystemExit):
    call('lab', '--', '--no-browser')
  assert started[-1] == '--no-browser'
  assert ('--allow-root' in started) == ('--ServerApp.ip=127.0.0.1' in started) == root


def test_an_interrupted_benchmark_does_not_speak_of_resuming(capsys, monkeypatch):
  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(harness, 'measure_all', interrupt)
  assert call('bench') == 130
  said = capsys.readouterr().err
  assert 'printed so far are complete' in said and 'resume' not in said


@pytest.mark.parametrize('lines', [1, 10_000])
def test_a_reader_that_leaves_is_no_error(lines):
  program = f"""
import sys
from perceiver_lib import __main__ as command_line
command_line.open_lab = lambda _: print('a line of text\\n' * {lines}) or 0
sys.exit(command_line.main(['lab']))"""
  command = [sys.executable, '-c', program]
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kernel_environment()) as process:
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 141


def test_every_public_name_is_there_and_nothing_heavy_is_imported_for_it():
  program = """
import sys
import perceiver_lib
names = [getattr(perceiver_lib, name) for name in perceiver_lib.__all__]
heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib', 'papermill', 'orbax', 'sklearn', 'skimage', 'grain'}
assert len(names) > 5 and not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  command = [sys.executable, '-W', 'error', '-c', program]
  done = subprocess.run(command, capture_output=True, text=True, env=kernel_environment())
  assert done.returncode == 0, done.stderr


def test_an_unknown_name_of_the_package_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'Perciever'"):
    _ = perceiver_lib.Perciever


def test_the_command_lists_converts_and_verifies(tmp_path, capsys):
  assert call('pretrained', 'list') == 0
  assert capsys.readouterr().out.count('\n') == len(RELEASED)
  folder = golden('hugging_face_text').write(tmp_path)
  assert call('pretrained', 'convert', folder, tmp_path / 'new') == 0
  assert call('pretrained', 'verify', tmp_path / 'new') == 0
  assert 'PerceiverIO, ' in capsys.readouterr().out
  weights = tmp_path / 'new' / 'model.safetensors'
  as_in_the_hubs_cache = weights.rename(weights.with_name('0' * 64))
  weights.symlink_to(as_in_the_hubs_cache)
  assert call('pretrained', 'verify', tmp_path / 'new') == 2
  assert 'where the hub has 0000' in capsys.readouterr().err


def test_readme_and_the_help_say_what_each_exit_code_means():
  readme = (project_root() / 'README.md').read_text()
  assert (
    markdown(('exit code', 'what happened', 'what to do'), [(c, *w) for c, w in errors.EXIT_CODES.items()]) in readme
  )
  codes = {value for name, value in vars(errors).items() if name.startswith('EXIT_') and isinstance(value, int)}
  assert codes - set(errors.EXIT_CODES) == {errors.EXIT_BROKEN_PIPE}
