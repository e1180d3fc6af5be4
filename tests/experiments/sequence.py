"""Tiny notebooks with known faults, for the tests of the runner."""

from __future__ import annotations

from pathlib import Path

PARAMETERS = """\
profile: str = 'smoke'  # smoke, demo, full or paper
seed: int = 0
run_dir: str = ''
width: int = 3  # of the tiny model
rate: float = 1e-5
augment: bool = False"""

START = """\
from perceiver_lib.experiments import start_run
run = start_run({name!r}, profile=profile, seed=seed, run_dir=run_dir, metrics=['accuracy'], figures=['curve'])"""

METRIC = "run.log_metric('accuracy', 90.0 + width, unit='%', baseline='majority class', baseline_value=10.0)"

FIGURE = """\
from matplotlib.figure import Figure
figure = Figure(figsize=(2, 2))
figure.subplots().plot([1, 3, 2])
run.save_figure(figure, 'curve', alt='A line that goes up and down.')"""

GOOD = (START, METRIC, FIGURE, 'run.finish()')


def write_notebook(
  folder: Path, name: str, *cells: str, parameters: str = PARAMETERS, title: str = 'A tiny one'
) -> Path:
  """Writes a source notebook: title, parameters cell, then the cells; `{name!r}` in them becomes its name."""
  import nbformat
  from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

  kernel = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
  tagged = new_code_cell(parameters, metadata={'tags': ['parameters']})
  code = [new_code_cell(cell.replace('{name!r}', repr(name))) for cell in cells]
  path = folder / f'{name}.ipynb'
  folder.mkdir(parents=True, exist_ok=True)
  nbformat.write(
    new_notebook(cells=[new_markdown_cell(f'# {title}'), tagged, *code], metadata={'kernelspec': kernel}), path
  )
  return path
