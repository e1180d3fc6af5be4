"""What reports, publishing and resuming make of a run whose files were cut, flipped, replaced or led elsewhere."""

from __future__ import annotations

import json
import os
import struct
import zlib

import pytest

from perceiver_lib.experiments import attempt, report, runner
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import METRIC, file_hash, read_records
from perceiver_lib.experiments.results import TABLE_END, TABLE_START, publish, results_table
from perceiver_lib.experiments.tables import markdown
from perceiver_lib.files import DamagedFile, finite, misfit, plain_name, read_json
from tests.experiments.sequence import GOOD, write_notebook
from tests.experiments.test_results import metric, write_run

REFUSED = (RequestError, DamagedFile)
CONTENTS = {
  'empty': b'',
  'not UTF-8': b'{"status": "\xff"}',
  'a list': b'[7]',
  'null': b'null',
  'a word': b'"complete"',
  'NaN': b'{"seconds": NaN}',
  'half a pair': b'{"status": "\\ud800"}',
  'deep': b'[' * 100_000,
  'a long number': b'1' * 5_000,
}


@pytest.fixture
def project(tmp_path):
  """A project with a published run `first`, and `run`, of two notebooks, which is damaged."""
  (tmp_path / 'README.md').write_text(f'{TABLE_START}\n{TABLE_END}\n')
  publish(write_run(tmp_path / 'first', ('03_other',)), tmp_path)
  write_run(tmp_path / 'run', ('01_images', '02_text'))
  return tmp_path


def published(project):
  paths = [project / 'README.md', project / 'RESULTS.md', *sorted((project / 'figures').iterdir())]
  return {path.name: path.read_bytes() for path in paths}


def assert_not_published(project, words):
  before = published(project)
  with pytest.raises(REFUSED, match=words):
    publish(project / 'run', project)
  assert published(project) == before


@pytest.mark.parametrize('content', CONTENTS)
@pytest.mark.parametrize('name', ['result.json', 'manifest.json'])
def test_one_damaged_notebook_is_named_and_the_others_are_shown(project, name, content):
  (project / 'run' / '01_images' / name).write_bytes(CONTENTS[content])
  damaged, whole = report.collect(project / 'run')['notebooks']
  assert damaged['status'] == 'damaged' and f'01_images/{name} is damaged: ' in damaged['message']
  assert whole['status'] == 'complete' and f'01_images/{name} is damaged' in report.learned(project / 'run')
  assert 'is damaged' in report.write_report(project / 'run').read_text()
  assert_not_published(project, f'01_images/{name} is damaged')


@pytest.mark.parametrize('content', CONTENTS)
def test_a_damaged_record_of_a_whole_run_or_of_the_project_is_refused_by_name(project, content):
  (project / 'run' / 'run.json').write_bytes(CONTENTS[content])
  for use in (
    report.write_report,
    lambda run: runner.reproduce(project, resume=run),
    lambda run: publish(run, project),
  ):
    with pytest.raises(DamagedFile, match=r'run/run\.json is damaged'):
      use(project / 'run')
  (project / 'run' / 'bands.json').write_bytes(CONTENTS[content])
  with pytest.raises(DamagedFile, match=r'bands\.json is damaged'):
    load_declarations(project / 'run' / 'bands.json')
  write_run(project / 'whole')
  results = project / 'figures' / 'results.json'
  for cut in (CONTENTS[content], results.read_bytes()[:-40]):
    results.write_bytes(cut)
    before = published(project)
    with pytest.raises(DamagedFile, match=r'results\.json is damaged'):
      publish(project / 'whole', project)
    assert published(project) == before


def test_no_flipped_byte_of_an_accepted_run_reaches_the_readme_unseen(project):
  """A title, a time or a message may change; what is published may not."""
  publish(project / 'run', project)
  right = published(project)
  for name in ('run.json', '01_images/result.json', '01_images/manifest.json', '01_images/figures/curve.png'):
    path = project / 'run' / name
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 7):
      for bit in (1, 128):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
          report.collect(project / 'run')
          publish(project / 'run', project)
        except REFUSED as error:
          assert str(project / 'run') in str(error)
        assert published(project) == right, (name, place, bit)
    path.write_bytes(whole)


def picture(width, height):
  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


@pytest.mark.parametrize('file', ['curve.png', 'curve.svg'])
@pytest.mark.parametrize('content', [None, b'', b'not it'])
def test_figures_are_all_checked_before_one_is_published(project, file, content):
  place = write_run(project / 'run_with_svg', vector='<svg/>').rename(project / 'run2') / '01_images' / 'figures'
  (place / file).unlink() if content is None else (place / file).write_bytes(content)
  before = published(project)
  with pytest.raises(RequestError, match=f'figures/{file} is gone or damaged'):
    publish(project / 'run2', project)
  assert published(project) == before
  [notebook] = report.collect(project / 'run2')['notebooks']
  assert f'figures/{file} is gone or damaged' in notebook['message']


@pytest.mark.parametrize('content', [picture(30_000, 30_000), picture(3, 3), b'GIF89a', b''])
def test_a_picture_that_cannot_be_opened_is_named_and_the_rest_is_shown(tmp_path, content):
  """As it was saved: only opening it shows what it is."""
  run = write_run(tmp_path / 'run', picture=content)
  [notebook] = report.collect(run)['notebooks']
  [figure] = notebook['figures']
  assert figure['alt'].startswith('curve.png cannot be shown (') and figure['source'] == ''
  assert notebook['status'] == 'complete' and 'curve.png cannot be shown' in report.write_report(run).read_text()


@pytest.mark.parametrize(
  'link', ['01_images', '01_images/figures', '01_images/earlier', '01_images/result.json', '.lock', '02_text/dangling']
)
def test_nothing_in_a_run_leads_out_of_it(project, link):
  outside, path = project / 'outside', project / 'run' / link
  outside.mkdir()
  if path.exists():
    path.rename(project / 'moved')
  os.symlink(outside / 'nowhere' if 'dangling' in link else outside, path)
  for use in (report.write_report, lambda run: runner.reproduce(project, resume=run)):
    with pytest.raises(RequestError, match='is a link that leaves the folder of the run'):
      use(project / 'run')
  assert_not_published(project, 'is a link that leaves')
  assert list(outside.iterdir()) == []


def test_a_link_within_a_run_and_a_run_behind_a_link_are_followed(project):
  (project / 'run' / '01_images' / 'log.txt').symlink_to(project / 'run' / '02_text' / 'result.json')
  (project / 'linked').symlink_to(project / 'run')
  assert report.collect(project / 'linked')['complete'] == 2


@pytest.mark.parametrize('name', ['../first/03_other', '/etc', '..', '.', '', 'a/b', 'a\\b', '.hidden', 'a\nb', 7])
def test_names_in_a_run_stay_in_it(project, name):
  assert not plain_name(name)
  run = read_json(project / 'run' / 'run.json')
  if isinstance(name, str):
    (project / 'run' / 'run.json').write_text(json.dumps(run | {'notebooks': {name: 'A title'}}))
    assert_not_published(project, 'run.json is damaged: a name is')
    with pytest.raises(DamagedFile, match='a name is'):
      report.write_report(project / 'run')


def test_a_record_that_is_no_file_is_damage_and_a_disk_that_fails_is_not(tmp_path, monkeypatch):
  (tmp_path / 'folder').mkdir()
  os.mkfifo(tmp_path / 'pipe')
  for name in ('folder', 'pipe'):
    with pytest.raises(DamagedFile, match='is no regular file'):
      read_json(tmp_path / name)
  assert read_json(tmp_path / 'none') is read_json(tmp_path / 'pipe' / 'none') is None

  def fail(*_, **__):
    raise OSError(24, 'Too many open files')

  (tmp_path / 'file').write_text('{}')
  monkeypatch.setattr(type(tmp_path), 'read_text', fail)
  with pytest.raises(OSError, match='Too many'):
    read_json(tmp_path / 'file')


@pytest.mark.parametrize(
  ('value', 'shape', 'wrong'),
  [
    ({'a': [1, 2.5]}, {'a': [finite]}, ''),
    ({'a': [1, True]}, {'a': [finite]}, 'an item of a is True'),
    ({'a': 10**400}, {'a': finite}, 'a is 1000'),
    ({'b': 1}, {'a': int}, "its content lacks 'a'"),
    ({'a': None}, {'a': (str, None)}, ''),
    ({'a': 3}, {'a': (str, None)}, 'a is 3'),
    ({'x': '1', 'y': '2'}, {str: str}, ''),
    ({'x': '1', 'y': 2}, {str: str}, 'y is 2'),
    ([], {'a': int}, 'its content is []'),
  ],
)
def test_shapes(value, shape, wrong):
  assert misfit(value, shape).startswith(wrong) and bool(misfit(value, shape)) == bool(wrong)


def test_lines_of_metrics_that_are_damaged_are_left_out(tmp_path):
  good = json.dumps(metric('accuracy', 3.0)).encode()
  (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join([good, b'\xff', b'[]', b'{"metric": 1}', b'NaN', good[:-5]]))
  assert [record['value'] for record in read_records(tmp_path / 'metrics.jsonl', METRIC)] == [3.0]


def test_words_of_a_notebook_are_shown_in_the_table_as_they_are():
  words = f'a | b\n{TABLE_END} **bold** [link](x) <script> `code` \\|'
  record = metric('accuracy', 3.0, baseline=words, paper=words, unit=words)
  row = {**record, 'notebook': '01_images', 'profile': 'demo', 'device': words}
  text = results_table([row])
  assert text.count('\n') == 2 and TABLE_END not in text and '<' not in text
  assert r'a \| b &lt;!-- results: end --> \*\*bold\*\* \[link\](x) &lt;script> \`code\` \\\|' in text
  assert markdown(['a'], [['x | y'], [r'x \| y']]).splitlines()[2:] == [r'| x \| y |'] * 2


def test_a_notebook_that_damages_its_run_does_not_stop_the_next(tmp_path, monkeypatch):
  started, said = [], []

  def damage(command, *, log, **_):
    started.append(log.parent.name)
    (log.parent.parent / 'run.json').write_bytes(b'\xff')
    return 1

  for name in ('00_one', '01_two'):
    write_notebook(tmp_path / 'notebooks', name, *GOOD)
  monkeypatch.setattr(attempt, 'run_limited', damage)
  monkeypatch.setattr(attempt.pages, 'write_page', lambda executed, target, title: None)
  _, results = runner.reproduce(tmp_path / 'notebooks', say=said.append)
  assert started == ['00_one', '01_two'] and [result.status for result in results] == ['failed'] * 2
  assert sum('no report: ' in line and 'run.json is damaged' in line for line in said) == 2


def test_hashes_are_those_of_the_content(tmp_path):
  (tmp_path / 'file').write_bytes(b'abc')
  assert file_hash(tmp_path / 'file').startswith('ba7816bf8f01cfea')
