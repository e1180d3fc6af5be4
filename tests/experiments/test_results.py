"""Report page and published results, from a run made of files."""

from __future__ import annotations

import json

import pytest

from perceiver_lib.experiments import report, results
from perceiver_lib.experiments.accept import accept, history_file, read_history
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.compare import compare_runs, spread_over
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import file_hash, project_root
from perceiver_lib.experiments.results import TABLE_END, TABLE_START, keep_weights, publish
from perceiver_lib.experiments.wording import describe_number
from perceiver_lib.files import read_json


def metric(
  name, value, *, band=None, in_band=None, unit='%', baseline='majority class', baseline_value=10.0, paper=None
):
  return {'metric': name, 'value': value, 'unit': unit, 'baseline': baseline, 'baselines': {},
          'baseline_value': baseline_value,
          'paper': paper, 'band': band, 'in_band': in_band}  # fmt: skip


def write_run(
  folder,
  notebooks=('01_images',),
  *,
  profile='demo',
  value=97.0,
  status='complete',
  overrides=None,
  picture=None,
  vector='',
  seed=3,
  weights=(),
):
  """A run of complete notebooks, each with one banded and one bare metric, and one figure."""
  from PIL import Image

  run = {'id': folder.name, 'profile': profile, 'only': [], 'overrides': overrides or {}, 'commit': 'abc',
         'notebooks': {name: f'About {name} & <more>' for name in notebooks}, 'created': '2026-01-02T03:04:05+00:00',
         'uncommitted_changes': False}  # fmt: skip
  environment = {
    'python': '3.11',
    'jax': '0.10',
    'device': 'CPU, 2 cores',
    'commit': 'abc',
    'uncommitted_changes': True,
  }
  folder.mkdir(parents=True)
  for name in notebooks:
    place = folder / name
    (place / 'figures').mkdir(parents=True)
    Image.effect_noise((30, 20), 99).save(place / 'figures' / 'curve.png')
    if picture is not None:
      (place / 'figures' / 'curve.png').write_bytes(picture)
    if vector:
      (place / 'figures' / 'curve.svg').write_text(vector)
    band = {'min': 95.0, 'max': None, 'reason': 'three seeds'}
    metrics = {
      'accuracy': metric('accuracy', value, band=band, in_band=value >= 95, paper='78.0 (Table 2)'),
      'num_parameters': metric('num_parameters', 42135859, unit='', baseline=None, baseline_value=None, paper=42135859),
    }
    files = {path.name: file_hash(path) for path in sorted((place / 'figures').iterdir())}
    (place / 'weights').mkdir()
    for trained in weights:
      (place / 'weights' / f'{trained}.safetensors').write_text(trained)
    manifest = {'status': status, 'problems': [], 'notebook': name, 'profile': profile, 'seed': seed,
                'metrics': metrics, 'finished': '2026-01-02T04:05:06+00:00', 'environment': environment, 'data': [],
                'sizes': {'steps': 900},
                'weights': {path.name: file_hash(path) for path in (place / 'weights').iterdir()},
                'figures': [{'slug': 'curve', 'alt': 'A "line" & more', 'files': files}]}  # fmt: skip
    (place / 'manifest.json').write_text(json.dumps(manifest))
    result = {'notebook': name, 'status': status, 'seconds': 61.0, 'message': '',
              'manifest_sha256': file_hash(place / 'manifest.json')}  # fmt: skip
    (place / 'result.json').write_text(json.dumps(result))
  (folder / 'run.json').write_text(json.dumps(run))
  return folder


@pytest.fixture
def project(tmp_path):
  (tmp_path / 'README.md').write_text(f'# Title\n\n{TABLE_START}\nold\n{TABLE_END}\n\nThe end.\n')
  return tmp_path


def test_publishing_copies_figures_writes_records_and_renews_the_table(project):
  written = publish(write_run(project / 'runs' / 'a'), project)
  assert written == ['01_curve.png'] and (project / 'figures' / '01_curve.png').is_file()
  first, second = read_json(project / 'figures' / 'results.json')
  assert first == {
    'notebook': '01_images', 'profile': 'demo', 'metric': 'accuracy', 'value': 97.0, 'unit': '%',
    'baseline': 'majority class', 'baseline_value': 10.0, 'baselines': {}, 'paper': '78.0 (Table 2)',
    'band': {'min': 95.0, 'max': None, 'reason': 'three seeds'},
    'seed': 3, 'device': 'CPU, 2 cores', 'date': '2026-01-02', 'commit': 'abc+',
  }  # fmt: skip
  assert second['metric'] == 'num_parameters' and second['value'] == 42135859
  page = (project / 'RESULTS.md').read_text()
  assert 'demo, seed 3, CPU, 2 cores, 2026-01-02, commit abc+: `make reproduce PROFILE=demo ONLY=01`' in page
  assert '| accuracy | **97 %** | 10 % (majority class) | 78.0 (Table 2) | ≥ 95 |' in page
  assert '| num parameters | **42,135,859** | – | 42,135,859 | – |' in page


def test_readme_shows_the_headlines_that_there_are(project, monkeypatch):
  monkeypatch.setattr(results, 'HEADLINES', {'Learned': ('01_images/accuracy', '04_none/accuracy'), 'Cost': ()})
  publish(write_run(project / 'run'), project)
  readme = (project / 'README.md').read_text()
  assert readme.startswith('# Title\n') and readme.endswith('\nThe end.\n') and 'old' not in readme
  row = '| Learned | [01](notebooks/01_images.ipynb) | accuracy | **97 %** | 10 % (majority class) |'
  assert row in readme and readme.count('[01]') == 1


def test_every_headline_is_a_declared_metric():
  declared = load_declarations(project_root() / 'notebooks' / 'bands.json')
  for notebook, metric in (name.split('/') for group in results.HEADLINES.values() for name in group):
    assert metric in declared[notebook].metrics, (notebook, metric)


def test_the_weights_that_the_index_names_are_kept_with_their_hash_and_score(tmp_path):
  (folder := tmp_path / 'weights').mkdir()
  other = {'metric': 'accuracy', 'value': 1.0, 'sha256': 'c'}
  (folder / 'index.json').write_text(
    json.dumps({'01_main.safetensors': {'metric': 'accuracy'}, '02_main.safetensors': other})
  )
  run = write_run(tmp_path / 'run', weights=('main', 'unnamed'))
  assert keep_weights(run, folder) == ['01_main.safetensors']
  assert sorted(path.name for path in folder.iterdir()) == ['01_main.safetensors', 'index.json']
  found = {'metric': 'accuracy', 'value': 97.0, 'sha256': file_hash(folder / '01_main.safetensors')}
  assert read_json(folder / 'index.json') == {'01_main.safetensors': found, '02_main.safetensors': other}
  (run / '01_images' / 'weights' / 'main.safetensors').write_text('of another run')
  with pytest.raises(RequestError, match='is not what the run of 01_images ended with'):
    keep_weights(run, folder)
  assert read_json(folder / 'index.json')['01_main.safetensors'] == found
  with pytest.raises(RequestError, match='ran with changed parameters'):
    keep_weights(write_run(tmp_path / 'loaded', overrides={'train': False}), folder)


def test_a_figure_that_a_notebook_no_longer_makes_goes(project):
  (project / 'figures').mkdir()
  for name in ('01_old.png', '01_old.full.png', '02_old.png'):
    (project / 'figures' / name).touch()
  publish(write_run(project / 'run'), project)
  assert sorted(path.name for path in (project / 'figures').glob('*.png')) == [
    '01_curve.png', '01_old.full.png', '02_old.png'
  ]  # fmt: skip


def test_records_of_other_notebooks_and_profiles_stay(project):
  publish(write_run(project / 'a', ('01_images', '02_text')), project)
  publish(write_run(project / 'b', ('01_images',), profile='full', value=99.0), project)
  publish(write_run(project / 'c', ('01_images',), value=98.0), project)
  values = [(row['notebook'], row['profile'], row['value']) for row in read_json(project / 'figures' / 'results.json')]
  assert [row for row in values if row[2] < 100] == [
    ('01_images', 'demo', 98.0), ('01_images', 'full', 99.0), ('02_text', 'demo', 97.0)]  # fmt: skip
  figures = sorted(path.name for path in (project / 'figures').glob('*.png'))
  assert figures == ['01_curve.full.png', '01_curve.png', '02_curve.png']
  publish(project / 'c', project)
  assert len(read_json(project / 'figures' / 'results.json')) == 6


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'profile': 'smoke'}, 'its numbers are not results'),
    ({'status': 'failed'}, 'not an accepted run: 01_images is not complete'),
    ({'overrides': {'width': 5}}, 'changed parameters'),
  ],
)
def test_what_is_not_an_accepted_run_is_not_published(project, changes, words):
  with pytest.raises(RequestError, match=words):
    publish(write_run(project / 'a', **changes), project)
  assert not (project / 'figures').exists() and 'old' in (project / 'README.md').read_text()


def test_publishing_refuses_a_folder_that_is_no_run_and_a_readme_without_a_place(project):
  with pytest.raises(RequestError, match='not the folder of a run'):
    publish(project, project)
  (project / 'README.md').write_text('# Title\n')
  with pytest.raises(RequestError, match='needs one line "<!-- results: start -->"'):
    publish(write_run(project / 'a'), project)
  assert not (project / 'figures').exists()


def test_a_run_with_another_seed_is_an_accepted_run(project):
  publish(write_run(project / 'a', overrides={'seed': 3}), project)
  assert read_json(project / 'figures' / 'results.json')


def test_the_report_escapes_text_and_places_the_gauge(tmp_path):
  folder = write_run(tmp_path / 'a', value=90.0)
  page = report.write_report(folder).read_text()
  assert 'About 01_images &amp; &lt;more&gt;' in page and 'alt="A &#34;line&#34; &amp; more"' in page
  [notebook] = report.collect(folder)['notebooks']
  gauge = notebook['metrics'][0]['gauge']
  assert 0 < gauge['baseline'] < gauge['value'] < gauge['start'] < 100
  assert gauge['start'] + gauge['width'] == pytest.approx(100)
  assert notebook['metrics'][1]['gauge'] is None
  assert 'outside the band ≥ 95' in page
  assert notebook['time'] == '1 min 01 s'


def test_a_run_that_goes_on_has_a_page_that_says_so(tmp_path):
  folder = write_run(tmp_path / 'a', ('01_images', '02_text'))
  (folder / '02_text' / 'result.json').unlink()
  page = report.collect(folder)
  assert page['status'] == 'unfinished' and page['complete'] == 1
  assert 'not run' in report.write_report(folder).read_text()


def test_the_newest_run_is_found_by_its_time_and_damaged_ones_are_named(tmp_path, capsys):
  with pytest.raises(RequestError, match='No run in'):
    report.latest_run(tmp_path)
  for name, created in (('z', '2026-01-01'), ('a', '2026-03-01'), ('m', '2026-02-01')):
    run = json.loads((write_run(tmp_path / name, ()) / 'run.json').read_text())
    (tmp_path / name / 'run.json').write_text(json.dumps(run | {'created': created}))
  for name, content in (('empty', b''), ('bytes', b'\xff\xfe'), ('shape', b'[]')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'run.json').write_bytes(content)
  assert report.latest_run(tmp_path).name == 'a'
  assert [line.split()[:2] for line in capsys.readouterr().err.splitlines()] == [['Passed', 'over:']] * 3


def measured_project(project, bands):
  (project / 'notebooks').mkdir()
  content = {'01_images': {'figures': ['curve'], 'metrics': {'accuracy': bands, 'num_parameters': {}}}}
  (project / 'notebooks' / 'bands.json').write_text(json.dumps(content))
  return [write_run(project / 'runs' / str(seed), seed=seed, value=value) for seed, value in ((0, 96.0), (1, 97.0))]


def test_accepted_seeds_are_published_kept_and_move_the_bands_that_are_measured(project, monkeypatch):
  runs = measured_project(
    project, {'demo': {'min': 90.0, 'reason': 'measured: once'}, 'full': {'min': 99.0, 'reason': 'measured: a card'}}
  )
  accept(runs[:1], project, reason='the first')
  written, renewed = accept(runs, project, reason='two seeds')
  assert written == ['01_curve.png'] and renewed == ['01_images/accuracy']
  bands = read_json(project / 'notebooks' / 'bands.json')['01_images']['metrics']['accuracy']
  assert bands['full'] == {'min': 99.0, 'reason': 'measured: a card'}
  assert bands['demo'] == {
    'min': 93.5,
    'reason': bands['demo']['reason'],
  } and bands['demo']['reason'].startswith('measured: 96.5 (96 to 97) of seeds 0, 1 at abc+')
  assert read_history(project)['01_images', 'demo', 'accuracy'] == [96.0, 96.5]
  with history_file(project).open('a') as file:
    file.write('{"cut')
  monkeypatch.chdir(project)
  [notebook] = report.collect(runs[1])['notebooks']
  assert notebook['metrics'][0]['history']['points'].endswith('98.0,2.0')
  assert '2 accepted before: 96, 96.5' in report.write_report(runs[1]).read_text()


def test_a_band_that_is_argued_stays(project):
  argued = {'demo': {'min': 90.0, 'reason': 'the control reaches 88'}}
  assert accept(measured_project(project, argued), project, reason='x')[1] == []
  assert read_json(project / 'notebooks' / 'bands.json')['01_images']['metrics']['accuracy'] == argued


def test_runs_that_do_not_belong_together_are_not_accepted(project):
  runs = measured_project(project, {})
  other = write_run(project / 'runs' / 'other', ('01_images', '02_text'), seed=2)
  without = write_run(project / 'runs' / 'without', seed=2)
  place = without / '01_images'
  manifest = read_json(place / 'manifest.json')
  del manifest['metrics']['num_parameters']
  (place / 'manifest.json').write_text(json.dumps(manifest))
  result = read_json(place / 'result.json') | {'manifest_sha256': file_hash(place / 'manifest.json')}
  (place / 'result.json').write_text(json.dumps(result))
  for chosen, reason, words in (
    (runs, ' ', 'Say with --reason'),
    ([runs[0], runs[0]], 'x', 'different seeds'),
    ([runs[0], other], 'x', 'same notebooks and profile'),
    ([runs[0], without], 'x', 'same metrics'),
  ):
    with pytest.raises(RequestError, match=words):
      accept(chosen, project, reason=reason)
  assert not (project / 'figures').exists()


def test_the_spread_over_runs_is_a_table(tmp_path):
  runs = [write_run(tmp_path / str(seed), seed=seed, value=value) for seed, value in enumerate((97.0, 95.0, 99.0))]
  [row] = [line for line in spread_over(runs).splitlines() if 'accuracy' in line]
  assert row == '| 01_images | accuracy | 97 % | 95 % | 99 % | 3 |'


def test_two_runs_are_compared_side_by_side(tmp_path):
  first = write_run(tmp_path / 'first')
  second = write_run(tmp_path / 'second', ('01_images', '02_text'), profile='full', value=98.5)
  (second / '02_text' / 'manifest.json').write_text('{')
  lines = compare_runs(first, second).splitlines()
  assert lines[0] == f'| notebook | metric or setting | {first} | {second} | second - first |'
  assert lines[2:] == [
    '| 01_images | accuracy | 97 % | 98.5 % | 1.5 % |',
    '| 01_images | num_parameters | 42,135,859 | 42,135,859 | 0 |',
    '| 01_images | profile | demo | full | differs |',
    '| 02_text | status | not run | damaged | differs |',
  ]


@pytest.mark.parametrize(
  ('value', 'unit', 'text'),
  [(42135859, '', '42,135,859'), (97.0, '%', '97 %'), (97.1234, '%', '97.12 %'), (0.000123456, 's', '0.0001235 s'),
   (12345.678, 'ms', '12,345.68 ms'), ('nan', '%', 'nan %')],
)  # fmt: skip
def test_numbers_for_people(value, unit, text):
  assert describe_number(value, unit) == text
