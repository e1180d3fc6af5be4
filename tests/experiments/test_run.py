"""The run context: what it keeps at once, what it refuses, and when it says "complete"."""

from __future__ import annotations

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.data.base import Provenance
from perceiver_lib.experiments import RunIncomplete, start_run
from perceiver_lib.experiments.environment import kernel_environment
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.figures import is_blank
from perceiver_lib.experiments.files import file_hash, read_records
from perceiver_lib.files import read_json
from tests.experiments.sequence import declare


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'run'


def open_run(
  folder,
  metrics=('accuracy',),
  figures=(),
  *,
  overrides=None,
  executable=sys.executable,
  profile='smoke',
  train=True,
  **band,
):
  """Opens the run as the runner would: with a request, and a declaration beside the notebook."""
  notebooks = folder.parent / 'notebooks'
  for made in (folder, notebooks):
    made.mkdir(parents=True, exist_ok=True)
  declare(notebooks, '01_tiny', metrics, figures, **band)
  request = {'executable': executable, 'source': str(notebooks / '01_tiny.ipynb'), 'overrides': overrides or {}}
  (folder / 'request.json').write_text(json.dumps(request))
  return start_run('01_tiny', profile=profile, seed=7, run_dir=str(folder), train=train)


def drawn():
  from matplotlib.figure import Figure

  figure = Figure(figsize=(2, 2))
  figure.subplots().plot([1, 3, 2])
  return figure


def test_a_complete_run_leaves_a_manifest_with_everything_in_it(folder):
  run = open_run(folder, metrics=['accuracy', 'steps'], figures=['curve'])
  data = Provenance(name='digits', kind='real', source='x', licence='y', counts={'train': 3}, checksum='ab')
  run.record_data(data)
  run.sizes(smoke={'steps': 3}, demo={'steps': 900})
  run.log('accuracy', jnp.float32(0.5), '%', baselines={'majority': np.float64(0.1)}, paper='0.6')
  run.log('steps', 11)
  run.save_figure(drawn(), 'curve', alt='A line.')
  run.finish()
  manifest = read_json(folder / 'manifest.json')
  assert manifest['status'] == 'complete' and manifest['problems'] == []
  assert manifest['seed'] == 7 and manifest['profile'] == 'smoke'
  assert manifest['metrics']['accuracy']['value'] == 0.5
  assert manifest['metrics']['accuracy']['baseline_value'] == 0.1
  assert manifest['metrics']['steps']['value'] == 11
  assert manifest['data'][0]['name'] == 'digits' and manifest['sizes'] == {'steps': 3}
  assert manifest['figures'][0]['alt'] == 'A line.'
  assert manifest['environment']['jax'] and manifest['environment']['device'].startswith('CPU')


def test_a_metric_is_on_the_disk_before_the_call_returns_and_the_last_value_counts(folder):
  run = open_run(folder)
  run.log('accuracy', 1.0)
  assert [record['value'] for record in read_records(folder / 'metrics.jsonl')] == [1.0]
  run.log('accuracy', 2.0)
  assert [record['value'] for record in read_records(folder / 'metrics.jsonl')] == [1.0, 2.0]
  run.finish()
  assert read_json(folder / 'manifest.json')['metrics']['accuracy']['value'] == 2.0


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"value": 1}\n{"val')
  assert read_records(path) == [{'value': 1}]


@pytest.mark.parametrize('value', [float('nan'), float('inf'), jnp.float32(float('-inf'))])
def test_a_number_that_is_not_finite_fails_the_run_and_is_still_recorded(folder, value):
  run = open_run(folder)
  run.log('accuracy', value)
  with pytest.raises(RunIncomplete, match='not a finite number'):
    run.finish()
  manifest = read_json(folder / 'manifest.json')
  assert manifest['status'] == 'failed' and manifest['metrics']['accuracy']['value'] == str(float(value))


def test_what_was_declared_and_not_shown_fails_the_run(folder):
  run = open_run(folder, metrics=['accuracy'], figures=['curve'])
  with pytest.raises(RunIncomplete, match=r"(?s)metric 'accuracy'.*not logged.*figure 'curve'.*not saved"):
    run.finish()
  assert read_json(folder / 'manifest.json')['status'] == 'failed'


def test_a_figure_whose_file_has_gone_fails_the_run(folder):
  run = open_run(folder, metrics=[], figures=['curve'])
  run.save_figure(drawn(), 'curve', alt='A line.')
  (folder / 'figures' / 'curve.png').unlink()
  with pytest.raises(RunIncomplete, match='its file is gone'):
    run.finish()


@pytest.mark.parametrize(('value', 'inside'), [(94.9, False), (95.0, True), (97.0, True), (99.0, True), (99.1, False)])
def test_bands_bind_when_the_runner_asked(folder, value, inside):
  run = open_run(folder, min=95, max=99)
  run.log('accuracy', value)
  if inside:
    run.finish()
  else:
    with pytest.raises(RunIncomplete, match=r'outside its band 95 to 99 \(a test\)'):
      run.finish()
  assert read_json(folder / 'manifest.json')['metrics']['accuracy']['in_band'] is inside


def test_bands_only_inform_when_a_parameter_was_changed(folder):
  run = open_run(folder, overrides={'width': 5}, min=95)
  run.log('accuracy', 11.0)
  run.finish()
  assert read_json(folder / 'manifest.json')['metrics']['accuracy']['in_band'] is False


@pytest.mark.parametrize(
  ('band', 'words'),
  [
    ({'min': 3, 'max': 2}, 'min 3 above max 2'),
    ({'min': '3'}, 'must hold min or max'),
    ({'min': None}, 'must hold min or max'),
    ({'min': 3, 'reason': ' '}, 'and a reason'),
    ({'min': 3, 'mean': 4}, 'must hold min or max'),
  ],
)
def test_a_malformed_band_is_refused(folder, band, words):
  with pytest.raises(RequestError, match=words):
    open_run(folder, **band)


def test_another_attempt_in_the_same_folder_overwrites_nothing_and_keeps_checkpoints(folder):
  first = open_run(folder)
  first.log('accuracy', 1.0)
  (kept := first.checkpoint('main').directory).mkdir(parents=True)
  first.finish()
  second = open_run(folder)
  second.log('accuracy', 2.0)
  second.finish()
  assert read_json(folder / 'manifest.json')['metrics']['accuracy']['value'] == 2.0
  assert read_json(folder / 'earlier' / '1' / 'manifest.json')['metrics']['accuracy']['value'] == 1.0
  assert second.checkpoint('main').directory == kept and kept.is_dir()


def test_without_a_folder_a_run_goes_to_a_new_one_under_the_project(tmp_path, monkeypatch):
  (tmp_path / 'notebooks').mkdir()
  (tmp_path / 'deeper').mkdir()
  monkeypatch.chdir(tmp_path / 'deeper')
  folders = {start_run('01_tiny', profile='smoke', seed=0).directory for _ in range(2)}
  assert len(folders) == 2
  assert all(folder.parent == tmp_path / 'runs' and folder.name.startswith('interactive-') for folder in folders)


def test_a_kernel_of_another_environment_is_noticed(folder):
  with pytest.raises(RequestError, match='python3 kernel of another environment'):
    open_run(folder, executable='/usr/bin/another-python')


@pytest.mark.parametrize(
  ('declared', 'words'),
  [
    ({'metrics': ['Test accuracy']}, 'lower-case letters'),
    ({'figures': ['../escape']}, 'lower-case letters'),
    ({'figures': ['a', 'a']}, 'declares a figure twice'),
  ],
)
def test_a_bad_declaration_is_refused(folder, declared, words):
  with pytest.raises(RequestError, match=words):
    open_run(folder, **declared)


def test_an_unknown_profile_is_refused_before_anything_is_made(folder):
  with pytest.raises(RequestError, match="Unknown profile 'huge'; choose one of smoke, demo, full, paper"):
    start_run('01_tiny', profile='huge', seed=0, run_dir=str(folder))
  assert not folder.exists()


def test_the_runner_refuses_a_notebook_that_declares_nothing(folder):
  open_run(folder)
  (folder.parent / 'notebooks' / 'bands.json').write_text('{}')
  with pytest.raises(RequestError, match='does not say which metrics and figures 01_tiny must show'):
    start_run('01_tiny', profile='smoke', seed=0, run_dir=str(folder))


def test_an_own_notebook_without_a_declaration_may_log_anything(tmp_path, monkeypatch):
  (tmp_path / 'notebooks').mkdir()
  monkeypatch.chdir(tmp_path)
  run = start_run('my_own', profile='smoke', seed=0)
  run.log('anything', 3)
  run.save_figure(drawn(), 'a_line', alt='A line.')
  run.finish()
  assert read_json(run.directory / 'manifest.json')['status'] == 'complete'


@pytest.mark.parametrize(('best', 'strongest'), [(max, 'nearest neighbour'), (min, 'one class')])
def test_the_strongest_baseline_is_chosen_by_code_and_the_others_are_kept(folder, best, strongest):
  run = open_run(folder)
  baselines = {'one class': 10.0, 'nearest neighbour': 94.0, 'diverged': float('nan')}
  run.log('accuracy', 96.0, '%', baselines=baselines, best=best)
  [record] = read_records(folder / 'metrics.jsonl')
  assert record['baseline'] == strongest and record['baseline_value'] == baselines[strongest]
  assert record['baselines'] == baselines | {'diverged': 'nan'}
  [row] = run.results().rows
  assert row[0] == 'accuracy' and row[1] == '96 %' and row[2].startswith(f'{baselines[strongest]:g} % {strongest}; ')


def test_sizes_are_those_of_the_profile_and_its_names_are_the_same_in_all(folder):
  run = open_run(folder)
  assert run.sizes(smoke={'steps': 3}, demo={'steps': 900}).steps == 3
  with pytest.raises(RequestError, match="no 'smoke' profile; it offers demo"):
    run.sizes(demo={'steps': 900})
  with pytest.raises(RequestError, match="must name the same sizes; 'rate' differs"):
    run.sizes(smoke={'steps': 3}, demo={'steps': 900, 'rate': 0.1})


def test_a_checkpoint_of_other_settings_is_another(folder):
  run = open_run(folder)
  sizes = run.sizes(smoke={'steps': 3})
  first, again, other = (run.checkpoint('main', sizes=sizes, width=width) for width in (1, 1, 2))
  assert first == again and first.fingerprint != other.fingerprint and first.directory == other.directory


def test_committed_weights_are_used_where_there_are_any_and_said_so(folder, capsys):
  with pytest.raises(RequestError, match=r'No weights of 01_tiny \(demo\) are committed'):
    open_run(folder, profile='demo', train=False)
  (committed := folder.parent / 'notebooks' / 'weights' / '01_main.safetensors').parent.mkdir()
  committed.write_bytes(b'7')
  with pytest.raises(RequestError, match=r'No weights of 01_tiny \(smoke\) are committed'):
    open_run(folder, train=False)
  trained = open_run(folder, profile='demo').checkpoint('main')
  assert trained.train and trained.weights == folder / 'weights' / 'main.safetensors'
  run = open_run(folder, profile='demo', train=False)
  assert not run.checkpoint('main').train and run.checkpoint('main').weights == committed
  other = run.checkpoint('two halves, 0')
  assert other.train and other.weights == folder / 'weights' / 'two_halves_0.safetensors'
  assert open_run(folder).committed('01_main') == committed
  with pytest.raises(RequestError, match=r"No weights '02_main' are committed; there are 01_main\."):
    run.committed('02_main')
  run.log('accuracy', 1.0)
  run.finish()
  assert read_json(folder / 'manifest.json')['loaded_weights'] == {'01_main.safetensors': file_hash(committed)}
  assert 'not trained here: 01_main.safetensors' in capsys.readouterr().out


@pytest.mark.parametrize('value', ['3', True, None, np.zeros(3), 1j])
def test_what_is_no_number_is_refused(folder, value):
  run = open_run(folder)
  with pytest.raises(RequestError, match='must be one real number'):
    run.log('accuracy', value)
  assert read_records(folder / 'metrics.jsonl') == []


def test_an_undeclared_metric_an_undeclared_figure_and_an_unclear_baseline_are_refused(folder):
  run = open_run(folder)
  with pytest.raises(RequestError, match='is not declared'):
    run.log('acuracy', 3.0)
  with pytest.raises(RequestError, match='which is the strongest'):
    run.log('accuracy', 3.0, baselines={'one class': 1.0, 'nearest neighbour': 2.0})
  with pytest.raises(RequestError, match='is not declared'):
    run.save_figure(drawn(), 'curve', alt='x')


def test_a_saved_figure_is_stamped_described_and_sharp(folder):
  from PIL import Image

  run = open_run(folder, metrics=[], figures=['curve'])
  with pytest.raises(RequestError, match='alt text'):
    run.save_figure(drawn(), 'curve', alt=' ')
  run.save_figure(drawn(), 'curve', alt='A line that goes up and down.')
  with Image.open(folder / 'figures' / 'curve.png') as image:
    assert image.text['Description'] == 'A line that goes up and down.'
    assert 'profile smoke' in image.text['Source'] and 'seed 7' in image.text['Source']
    assert image.info['dpi'] == pytest.approx((150, 150), abs=0.1)
  assert 'A line that goes up and down.' in (folder / 'figures' / 'curve.svg').read_text()


def test_a_large_drawing_is_kept_as_pixels_only(folder):
  from matplotlib.figure import Figure

  run = open_run(folder, metrics=[], figures=['cloud'])
  figure = Figure(figsize=(2, 2))
  points = np.random.default_rng(0).random((2, 4001))
  figure.subplots().scatter(*points, s=np.linspace(1, 3, 4001))
  run.save_figure(figure, 'cloud', alt='Many points.')
  assert [path.name for path in (folder / 'figures').iterdir()] == ['cloud.png']


@pytest.mark.parametrize(
  'kind', ['nothing', 'empty axes', 'line of nan', 'constant image', 'constant with colour bar', 'nan on a scale']
)
def test_a_blank_figure_is_refused(folder, kind):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(3, 2))
  if kind != 'nothing':
    axes = figure.subplots()
    if kind == 'line of nan':
      axes.plot([np.nan, np.nan])
    elif kind.startswith('constant'):
      image = axes.imshow(np.full((3, 5), 0.2))
      if kind.endswith('bar'):
        figure.colorbar(image)
    elif kind.endswith('scale'):
      axes.imshow(np.full((3, 5), np.nan), vmin=0, vmax=1)
  run = open_run(folder, metrics=[], figures=['curve'])
  with pytest.raises(RequestError, match='is blank'):
    run.save_figure(figure, 'curve', alt='Nothing.')
  assert not (folder / 'figures').exists()


@pytest.mark.parametrize(
  'kind', ['line', 'image', 'constant on a scale', 'two panels, one unused', 'text', 'outside of axes']
)
def test_a_figure_that_shows_something_is_not_blank(kind):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(3, 2))
  if kind == 'line':
    figure.subplots().plot([1, 2])
  elif kind == 'image':
    figure.subplots().imshow(np.arange(15).reshape(3, 5))
  elif kind == 'constant on a scale':
    figure.subplots().pcolormesh(np.full((3, 5), 0.2), vmin=0, vmax=1)
  elif kind == 'two panels, one unused':
    figure.subplots(1, 2)[1].plot([1, 2])
  elif kind == 'text':
    axes = figure.subplots()
    axes.text(0.5, 0.5, 'a table')
    axes.set_axis_off()
  else:
    figure.text(0.5, 0.5, 'words')
  assert not is_blank(figure)


def test_a_run_needs_neither_jupyter_nor_matplotlib(folder):
  program = f"""
import sys
for name in ('IPython', 'matplotlib', 'papermill', 'nbformat', 'tensorflow_datasets', 'grain', 'orbax'):
  sys.modules[name] = None
from perceiver_lib.experiments import start_run
run = start_run('01_tiny', profile='smoke', seed=0, run_dir={str(folder)!r})
run.log('accuracy', 1.0)
run.environment()
run.finish()
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=kernel_environment())
  assert done.returncode == 0, done.stderr
  assert 'is complete: 1 metrics' in done.stdout
