"""Tiny notebooks with known faults, for the tests of the runner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARAMETERS = """\
profile: str = 'smoke'  # smoke, demo, full or paper
seed: int = 0
run_dir: str = ''
width: int = 3  # of the tiny model
rate: float = 1e-5
augment: bool = False"""

START = """\
from perceiver_lib.experiments import start_run
run = start_run({name!r}, profile=profile, seed=seed, run_dir=run_dir)"""

METRIC = "run.log('accuracy', 90.0 + width, '%', baselines={'majority class': 10.0})"

FIGURE = """\
from matplotlib.figure import Figure
figure = Figure(figsize=(2, 2))
figure.subplots().plot([1, 3, 2])
run.save_figure(figure, 'curve', alt='A line that goes up and down.')"""

GOOD = (START, METRIC, FIGURE, 'run.finish()')


def write_notebook(
  folder: Path, name: str, *cells: str, parameters: str = PARAMETERS, title: str = 'A tiny one'
) -> Path:
  """Writes a source notebook: title, parameters cell, then the cells; `{name!r}` in them becomes its name.

  It is declared to show the metric 'accuracy' and the figure 'curve'.
  """
  import nbformat
  from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

  kernel = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
  tagged = new_code_cell(parameters, metadata={'tags': ['parameters']})
  code = [new_code_cell(cell.replace('{name!r}', repr(name))) for cell in cells]
  path = folder / f'{name}.ipynb'
  folder.mkdir(parents=True, exist_ok=True)
  declare(folder, name)
  nbformat.write(
    new_notebook(cells=[new_markdown_cell(f'# {title}'), tagged, *code], metadata={'kernelspec': kernel}), path
  )
  return path


def declare(
  folder: Path, name: str, metrics: Sequence[str] = ('accuracy',), figures: Sequence[str] = ('curve',), **band: Any
):
  """Adds what a notebook must show to the folder's bands.json; `band` bounds its first metric in the smoke profile."""
  path = folder / 'bands.json'
  content = json.loads(path.read_text()) if path.exists() else {}
  bands = {metric: {} for metric in metrics}
  if band:
    bands[metrics[0]] = {'smoke': {'reason': 'a test', **band}}
  path.write_text(json.dumps(content | {name: {'figures': list(figures), 'metrics': bands}}))
