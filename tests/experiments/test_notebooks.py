"""Reading notebooks: parameters are typed literals, checked by name and type; the hash is of the cells alone."""

from __future__ import annotations

import json

import pytest

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.notebooks import discover, load, notebook_hash, select
from tests.experiments.sequence import GOOD, PARAMETERS, write_notebook


@pytest.fixture
def notebook(tmp_path):
  return load(write_notebook(tmp_path, '01_tiny', *GOOD, title='Images as bytes'))


def test_a_notebook_is_read_with_its_documentation(notebook):
  assert (notebook.name, notebook.title) == ('01_tiny', 'Images as bytes')
  assert list(notebook.parameters) == ['profile', 'seed', 'run_dir', 'width', 'rate', 'augment']
  width = notebook.parameters['width']
  assert (width.type, width.default, width.help) == (int, 3, 'of the tiny model')


def test_given_values_replace_defaults_and_text_is_converted(notebook):
  resolved = notebook.resolve({'width': '5', 'rate': '1e-3', 'augment': 'true', 'profile': 'demo', 'seed': 3})
  assert resolved == {'profile': 'demo', 'seed': 3, 'run_dir': '', 'width': 5, 'rate': 1e-3, 'augment': True}
  assert [type(value) for value in resolved.values()] == [str, int, str, int, float, bool]
  assert type(notebook.resolve({'rate': 2})['rate']) is float


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ({'depth': 3}, "no parameter 'depth'; it has profile, seed"),
    ({'width': '2.5'}, "'width' must be int; got '2.5'"),
    ({'width': 2.0}, "'width' must be int; got 2.0"),
    ({'width': True}, "'width' must be int; got True"),
    ({'augment': 'yes'}, "'augment' must be bool; got 'yes'"),
    ({'rate': True}, "'rate' must be float; got True"),
    ({'profile': 3}, "'profile' must be str; got 3"),
  ],
)
def test_an_unknown_name_or_a_wrong_type_is_refused(notebook, given, words):
  with pytest.raises(RequestError, match=words):
    notebook.resolve(given)


@pytest.mark.parametrize(
  ('line', 'words'),
  [
    ('twice: int = 2 * 3', 'must be a literal'),
    ('width = 3', 'only "name: type = literal"'),
    ('import os', 'only "name: type = literal"'),
    ('sizes: list = []', 'a parameter is one of str, int, float, bool'),
    ('rate: float = 1', 'the default is int, not float'),
    ('width: int = "3"', 'the default is str, not int'),
    ('width: int =', 'is not Python'),
  ],
)
def test_a_parameters_cell_that_papermill_would_misread_is_refused(tmp_path, line, words):
  path = write_notebook(tmp_path, '01_tiny', parameters=f'profile: str = "a"\nseed: int = 0\nrun_dir: str = ""\n{line}')
  with pytest.raises(RequestError, match=words):
    load(path)


def test_the_three_common_parameters_are_required(tmp_path):
  path = write_notebook(tmp_path, '01_tiny', parameters=PARAMETERS.replace('seed: int = 0', 'seed: str = "0"'))
  with pytest.raises(RequestError, match='needs a parameter "seed: int"'):
    load(path)


def test_a_file_that_is_no_notebook_or_has_no_parameters_cell_is_refused(tmp_path):
  (tmp_path / '01_broken.ipynb').write_text('{"cells": ')
  with pytest.raises(RequestError, match='not a notebook'):
    discover(tmp_path)
  (tmp_path / '01_broken.ipynb').write_text('{"cells": []}')
  with pytest.raises(RequestError, match='0 code cells tagged "parameters"'):
    discover(tmp_path)
  with pytest.raises(RequestError, match='No notebooks'):
    discover(tmp_path / 'elsewhere')


def test_the_sequence_is_ordered_and_selected_by_number_or_name(tmp_path):
  for name in ('10_last', '00_first', '02_middle', 'draft'):
    write_notebook(tmp_path, name)
  notebooks = discover(tmp_path)
  assert [n.name for n in notebooks] == ['00_first', '02_middle', '10_last']
  assert [n.name for n in select(notebooks, ['10', '00_first'])] == ['00_first', '10_last']
  assert select(notebooks, []) == notebooks
  with pytest.raises(RequestError, match="No notebook '03'; there are 00_first, 02_middle, 10_last"):
    select(notebooks, ['00', '03'])


def test_the_hash_sees_source_and_ignores_outputs(tmp_path):
  path = write_notebook(tmp_path, '01_tiny', 'print(1)')
  before = notebook_hash(path)
  content = json.loads(path.read_text())
  content['cells'][-1]['outputs'] = [{'output_type': 'stream', 'name': 'stdout', 'text': ['1']}]
  content['cells'][-1]['execution_count'] = 4
  path.write_text(json.dumps(content))
  assert notebook_hash(path) == before
  content['cells'][-1]['source'] = ['print(2)']
  path.write_text(json.dumps(content))
  assert notebook_hash(path) != before
