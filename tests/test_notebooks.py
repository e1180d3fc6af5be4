"""The sequence itself: clean sources, and every notebook runs to its end in the smoke profile."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from perceiver_lib.experiments import runner
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.notebooks import load
from perceiver_lib.files import read_json
from tests.experiments.sequence import GOOD, write_notebook

FOLDER = Path(__file__).parents[1] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('[0-9][0-9]_*.ipynb'))
CELL_METADATA = {'tags'}
KERNEL = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
FORBIDDEN = {
  r'^\s*[!%]\s*(pip|conda|apt)': 'installs something',
  r'sys\.path': 'edits sys.path',
  r'filterwarnings\(\s*.ignore|simplefilter\(\s*.ignore': 'silences warnings',
  r'(?<![\w.:/])/(home|Users|root|tmp|work|content|mnt)/': 'holds an absolute path',
  r'google\.colab': 'depends on Colab',
  r'^\s*(import|from) (torch|tensorflow)\b(?!_)': 'imports another framework',
}


def lint(path: Path) -> list[str]:
  """What is unclean in a source notebook, one phrase each; empty for a clean one."""
  notebook = json.loads(path.read_text(encoding='utf-8'))
  code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
  found = []
  if any(cell.get('outputs') or cell.get('execution_count') is not None for cell in code):
    found.append('holds outputs or execution counts')
  if notebook['metadata'].get('kernelspec') != KERNEL:
    found.append(f'its kernelspec is not {KERNEL}')
  if extra := set(notebook['metadata']) - {'kernelspec', 'language_info'}:
    found.append(f'its metadata has {sorted(extra)}')
  if extra := {key for cell in notebook['cells'] for key in cell['metadata']} - CELL_METADATA:
    found.append(f'cell metadata has {sorted(extra)}')
  if not all('id' in cell for cell in notebook['cells']):
    found.append('cells without id')
  if [i for i, cell in enumerate(code) if 'parameters' in cell['metadata'].get('tags', [])] != [0]:
    found.append('the parameters cell is not the first code cell, or not the only one')
  else:
    try:
      load(path)
    except RequestError as error:
      found.append(str(error))
  sources = [''.join(cell['source']) for cell in code]
  for pattern, what in FORBIDDEN.items():
    if any(re.search(pattern, source, re.MULTILINE) for source in sources):
      found.append(what)
  if not any(re.search(rf'start_run\(\s*[\'"]{path.stem}[\'"]', source) for source in sources):
    found.append(f'no cell calls start_run with its own name {path.stem!r}')
  if sources and 'run.finish()' not in sources[-1]:
    found.append('the last code cell does not call run.finish()')
  if notebook['cells'][0]['cell_type'] != 'markdown' or not ''.join(notebook['cells'][0]['source']).startswith('# '):
    found.append('does not begin with a title')
  found.extend(_long_definitions(sources))
  links = re.findall(r'\]\(([\w./-]+\.ipynb)\)', ''.join(''.join(cell['source']) for cell in notebook['cells']))
  found.extend(f'links to {link}, which is not there' for link in links if not (path.parent / link).exists())
  return found


def _long_definitions(sources: list[str]) -> list[str]:
  """What is longer than a lesson belongs into the library."""
  found = []
  for source in sources:
    plain = '\n'.join('' if line.lstrip().startswith(('%', '!')) else line for line in source.splitlines())
    for node in ast.walk(ast.parse(plain)):
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.end_lineno - node.lineno >= 25:
        found.append(f'{node.name} has more than 25 lines; it belongs into the library')
  return found


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean(path):
  assert lint(path) == []


@pytest.mark.notebook
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_in_the_smoke_profile(path, tmp_path):
  folder, [result] = runner.reproduce(FOLDER, profile='smoke', only=[path.stem], run_dir=tmp_path / 'run')
  assert result.status == 'complete', f'{result.message}\n{(folder / path.stem / "log.txt").read_text()[-3000:]}'
  manifest = read_json(folder / path.stem / 'manifest.json')
  assert manifest['metrics'] and manifest['figures']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_bands_for_the_demo_profile(path):
  assert any('demo' in bands for bands in load_declarations(FOLDER / 'bands.json')[path.stem].metrics.values())


def test_declarations_belong_to_notebooks_that_exist():
  assert set(load_declarations(FOLDER / 'bands.json')) == {path.stem for path in NOTEBOOKS}


def test_a_clean_notebook_passes_the_lint(tmp_path):
  assert lint(write_notebook(tmp_path, '01_tiny', *GOOD)) == []


@pytest.mark.parametrize(
  ('cell', 'words'),
  [
    ('!pip install x', 'installs something'),
    ('%pip install x', 'installs something'),
    ('import sys\nsys.path.append("..")', 'edits sys.path'),
    ('import warnings\nwarnings.filterwarnings("ignore")', 'silences warnings'),
    ('open("/content/data")', 'absolute path'),
    ('import torch', 'another framework'),
    ('def long():\n' + '  x = 1\n' * 25, 'long has more than 25 lines'),
  ],
)
def test_the_lint_finds_what_does_not_belong_into_a_cell(tmp_path, cell, words):
  [found] = lint(write_notebook(tmp_path, '01_tiny', *GOOD[:-1], cell, GOOD[-1]))
  assert words in found


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda n: n['cells'][2].update(outputs=[{}]), 'holds outputs'),
    (lambda n: n['cells'][2].update(execution_count=1), 'holds outputs'),
    (lambda n: n['metadata']['kernelspec'].update(name='jax38'), 'kernelspec'),
    (lambda n: n['metadata'].update(widgets={}), "metadata has ['widgets']"),
    (lambda n: n['cells'][2]['metadata'].update(executionInfo={}), "cell metadata has ['executionInfo']"),
    (lambda n: n['cells'][2].pop('id'), 'cells without id'),
    (lambda n: n['cells'][1]['metadata'].clear(), 'parameters cell is not the first'),
    (lambda n: n['cells'][2]['metadata'].update(tags=['parameters']), 'parameters cell is not the first'),
    (lambda n: n['cells'][1].update(source='profile: str = "a"'), 'needs a parameter "seed: int"'),
    (lambda n: n['cells'][2].update(source='pass'), 'no cell calls start_run'),
    (lambda n: n['cells'].pop(), 'does not call run.finish()'),
    (lambda n: n['cells'][0].update(source='A tiny one'), 'does not begin with a title'),
    (lambda n: n['cells'][0].update(source='# T\n[next](02_gone.ipynb)'), 'links to 02_gone.ipynb'),
  ],
)
def test_the_lint_finds_what_does_not_belong_into_a_file(tmp_path, change, words):
  path = write_notebook(tmp_path, '01_tiny', *GOOD)
  notebook = json.loads(path.read_text())
  change(notebook)
  path.write_text(json.dumps(notebook))
  [found] = lint(path)
  assert words in found
