"""Imports run one way, the top of the package stays short, and what a practitioner imports stays small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import perceiver_lib

PACKAGE = Path(perceiver_lib.__file__).parent
TESTS = Path(__file__).parent

LAYERS = (
  'settings',
  'tokens',
  'positions parameters flops files',
  'attention',
  'blocks',
  'adapters',
  'queries',
  'decoder',
  'modalities',
  'scores data',
  'baselines plots',
  'models',
  'generation training',
  'pretrained',
  'experiments',
  'lessons',
  '__main__',
)
"""A file or folder of the package may import itself and what stands in a line above its own."""

BESIDE = {'scores', 'data', 'baselines', 'plots'}
"""What knows no model, and no model knows."""

ABOVE = {'experiments', 'lessons', '__main__'}
RANKS = {part: rank for rank, line in enumerate(LAYERS) for part in line.split()}


def imported(path: Path) -> Iterator[str]:
  """Parts of the package that a file imports, also inside functions and for type checkers."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      package, _, rest = name.partition('.')
      part = rest.partition('.')[0]
      # Of the package itself come names, such as `from perceiver_lib import fit`, and they may come from anywhere.
      if package == 'perceiver_lib' and (part in RANKS or (PACKAGE / part).is_dir()):
        yield part


def test_a_file_imports_only_what_stands_below_it():
  wrong = []
  for path in PACKAGE.rglob('*.py'):
    part = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    if part == '__init__':
      continue
    assert part in RANKS, f'{part} has no place in the layers'
    for other in imported(path):
      upwards = other != part and RANKS[other] >= RANKS[part]
      if upwards or (other in BESIDE and part not in BESIDE | ABOVE):
        wrong.append(f'{path.relative_to(PACKAGE)} imports {other}')
  assert not wrong


def test_the_tests_of_the_core_know_no_lesson_and_no_experiment():
  own = ('lessons', 'experiments', 'test_notebooks.py', 'test_cli.py', 'soak.py', 'test_soak.py')
  for path in TESTS.rglob('*.py'):
    if path.relative_to(TESTS).parts[0] not in own:
      assert not ABOVE & set(imported(path)), f'{path.relative_to(TESTS)} imports what stands above the core'


def test_the_top_of_the_package_is_seen_at_a_glance():
  entries = [entry.name for entry in PACKAGE.iterdir() if not entry.is_dir() and not entry.name.startswith('.')]
  assert len(entries) <= 12, sorted(entries)


def test_what_a_practitioner_imports_stays_small():
  code = (
    'import sys; from perceiver_lib import Perceiver, PerceiverIO, PerceiverAR, UnifiedPerceiver, fit; '
    'print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "perceiver_lib"))'
  )
  files = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
  lines = sum(len(Path(file).read_text(encoding='utf-8').splitlines()) for file in files)
  assert 2_000 < lines <= 6_200, f'{lines:,} lines'
  assert not [file for file in files if Path(file).relative_to(PACKAGE).parts[0] in BESIDE | ABOVE]
