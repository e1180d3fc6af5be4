"""The run context: what a notebook declares, records as it goes, and must have shown when it ends.

    run = start_run('01_perceiver_images_as_bytes', profile=profile, seed=seed, run_dir=run_dir,
                    metrics=['test_accuracy'], figures=['learning_curve'])
    run.log_metric('test_accuracy', 97.1, unit='%', baseline='linear classifier', baseline_value=89.0)
    run.save_figure(figure, 'learning_curve', alt='Validation accuracy rises to 97 % within 900 steps.')
    run.finish()

Everything lies in one folder: `metrics.jsonl` (a line at once, on the disk before the call returns), `figures/`,
`checkpoints/`, and at the end `manifest.json`, whose status "complete" only `finish()` writes.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.bands import FILE_NAME as BANDS_FILE
from perceiver_lib.experiments.bands import Band, load_bands
from perceiver_lib.experiments.environment import Stamp, environment_stamp
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.figures import in_notebook, save_figure_files, show_in_notebook
from perceiver_lib.experiments.files import append_record, project_root, read_json, set_aside, write_json
from perceiver_lib.experiments.notebooks import notebook_hash
from perceiver_lib.experiments.profiles import check_profile
from perceiver_lib.experiments.text import describe_metric
from perceiver_lib.training.fit import enable_compilation_cache

METRIC_MIME_TYPE = 'application/vnd.perceiver.metric+json'
OWN_FILES = ('manifest.json', 'metrics.jsonl', 'figures')
_NAME = re.compile(r'[a-z0-9][a-z0-9_]*')


class RunIncomplete(AssertionError):
  """A notebook reached its end without having shown what it declared. The text lists what is missing or off."""


def start_run(
  notebook: str,
  *,
  profile: str,
  seed: int,
  run_dir: str = '',
  metrics: Sequence[str],
  figures: Sequence[str],
) -> Run:
  """Opens the run of one notebook, with JAX's persistent compilation cache on.

  Args:
    notebook: the notebook's file name without suffix.
    profile: one of `profiles.PROFILES`.
    seed: of everything random in the notebook.
    run_dir: the notebook's own folder, given by the runner. Empty: `runs/interactive-<time>` under the project.
    metrics: every metric that will be logged; lower-case words joined by underscores.
    figures: the slug of every figure that will be saved; as above.

  Raises:
    RequestError: for an unknown profile, a malformed or repeated name, or a kernel of another environment.
  """
  check_profile(profile)
  for kind, names in (('metric', metrics), ('figure', figures)):
    for name in names:
      if not _NAME.fullmatch(name):
        raise RequestError(f'The {kind} name {name!r} must be lower-case letters, digits and underscores.')
    if len(set(names)) < len(names):
      raise RequestError(f'A {kind} name is declared twice in {list(names)}.')
  directory = Path(run_dir).resolve() if run_dir else _interactive_directory()
  directory.mkdir(parents=True, exist_ok=True)
  request = read_json(directory / 'request.json') or {}
  if request and request['executable'] != sys.executable:
    raise RequestError(
      f'This kernel runs {sys.executable}, the runner runs {request["executable"]}: '
      'a python3 kernel of another environment was started; reinstall ipykernel in this one.'
    )
  set_aside(directory, OWN_FILES)
  enable_compilation_cache()
  return Run(
    notebook=notebook,
    profile=profile,
    seed=seed,
    directory=directory,
    metrics=metrics,
    figures=figures,
    request=request,
  )


class Run:
  """One execution of one notebook; made by `start_run`.

  Attributes:
    notebook, profile, seed: as given.
    directory: the run's folder.
  """

  def __init__(
    self,
    *,
    notebook: str,
    profile: str,
    seed: int,
    directory: Path,
    metrics: Sequence[str],
    figures: Sequence[str],
    request: Mapping[str, Any],
  ):
    self.notebook, self.profile, self.seed, self.directory = notebook, profile, seed, directory
    self._declared_metrics, self._declared_figures = tuple(metrics), tuple(figures)
    root = project_root()
    source = Path(request['source']) if request else root / 'notebooks' / f'{notebook}.ipynb'
    self._notebook_hash = notebook_hash(source) if source.exists() else ''
    self._bands = load_bands(source.parent / BANDS_FILE).get(notebook, {}).get(profile, {})
    # A changed parameter is another experiment, and interactively nobody knows what was changed: bands inform there.
    self._bands_bind = bool(request) and not request['overrides']
    self._environment = environment_stamp(root)
    self._started, self._start_time = _now(), time.monotonic()
    self._metrics: dict[str, dict[str, Any]] = {}
    self._figures: dict[str, dict[str, Any]] = {}
    self._data: list[dict[str, Any]] = []

  def __repr__(self) -> str:
    return f'Run({self.notebook}, profile {self.profile}, seed {self.seed})'

  @property
  def checkpoint_dir(self) -> Path:
    """Where training keeps what it needs to continue; survives a resumed run."""
    return self.directory / 'checkpoints'

  def environment(self) -> Stamp:
    """The stamp of this run: versions, devices, commit, seed, notebook hash, start time. Shown as a list."""
    own = {'notebook': self.notebook, 'profile': self.profile, 'seed': self.seed, 'started': self._started}
    return Stamp(own | {'notebook_sha256': self._notebook_hash} | self._environment)

  def record_data(self, provenance: Any) -> None:
    """Keeps where the data came from (a `data.base.Provenance`) for the manifest, and prints it."""
    self._data.append(dataclasses.asdict(provenance))
    print(provenance)

  def log_metric(
    self,
    name: str,
    value: Any,
    *,
    unit: str = '',
    baseline: str | None = None,
    baseline_value: Any = None,
    paper: float | str | None = None,
  ) -> None:
    """Records a number for good and shows it beside what it must be compared with. The last value of a name counts.

    Args:
      name: one of the declared metrics.
      value: a real number: Python, NumPy or JAX scalar.
      unit: '%', 'bits/byte', 's', ...
      baseline: what was done instead, in words.
      baseline_value: what that reached, in the same unit.
      paper: the published value, as a number or as words with its place ('78.0, Table 2').

    Raises:
      RequestError: for an undeclared name, something that is no number, or half a baseline.
    """
    if name not in self._declared_metrics:
      raise RequestError(f'Metric {name!r} was not declared; start_run got {list(self._declared_metrics)}.')
    if (baseline is None) != (baseline_value is None):
      raise RequestError(f'Metric {name!r}: give baseline (words) and baseline_value (number) together.')
    record = {
      'metric': name,
      'value': _as_json(_number(value, name)),
      'unit': unit,
      'baseline': baseline,
      'baseline_value': None if baseline_value is None else _as_json(_number(baseline_value, f'{name} baseline')),
      'paper': paper,
    }
    append_record(self.directory / 'metrics.jsonl', {**record, 'time': _now()})
    self._metrics[name] = record
    if in_notebook():
      from IPython.display import display

      display({METRIC_MIME_TYPE: record, 'text/plain': describe_metric(record)}, raw=True)

  def save_figure(self, figure: Any, slug: str, *, alt: str) -> None:
    """Saves a matplotlib figure as PNG at 150 dpi (and SVG where that is small) and shows it, once.

    Args:
      figure: a matplotlib Figure.
      slug: one of the declared figures.
      alt: what there is to see, in a sentence.

    Raises:
      RequestError: for an undeclared slug, an empty alt text, or a blank figure.
    """
    if slug not in self._declared_figures:
      raise RequestError(f'Figure {slug!r} was not declared; start_run got {list(self._declared_figures)}.')
    if not alt.strip():
      raise RequestError(f'Figure {slug!r} needs an alt text: one sentence that says what there is to see.')
    stamp = {
      'notebook': self.notebook,
      'profile': self.profile,
      'seed': str(self.seed),
      'commit': self._environment['commit'] + ('+' if self._environment['uncommitted_changes'] else ''),
    }
    folder = self.directory / 'figures'
    files = save_figure_files(figure, folder, slug, alt=alt, stamp=stamp)
    sha256 = hashlib.sha256((folder / files[0]).read_bytes()).hexdigest()
    self._figures[slug] = {'slug': slug, 'alt': alt, 'files': files, 'sha256': sha256}
    show_in_notebook(figure, folder / files[0], alt)

  def finish(self) -> None:
    """Writes the manifest; it says "complete" if everything declared is there, finite, in its band and not blank.

    Bands bind when the runner started the notebook with its own parameters; else they are only reported.

    Raises:
      RunIncomplete: listing everything that is missing or off. The manifest then says "failed".
    """
    metrics = {name: self._judged(record) for name, record in self._metrics.items()}
    problems = [
      f'metric {name!r} was declared but not logged' for name in self._declared_metrics if name not in metrics
    ]
    for name, record in metrics.items():
      value, band = record['value'], self._bands.get(name)
      if isinstance(value, str):
        problems.append(f'metric {name!r} is {value}, not a finite number')
      elif self._bands_bind and record['in_band'] is False:
        problems.append(f'metric {name!r} is {value:.6g}, outside its band {band} ({band.reason})')
    for name in self._bands if self._bands_bind else ():
      if name not in self._declared_metrics:
        problems.append(f'metric {name!r} has a band but is not declared')
    for slug in self._declared_figures:
      if slug not in self._figures:
        problems.append(f'figure {slug!r} was declared but not saved')
      elif not all((self.directory / 'figures' / file).is_file() for file in self._figures[slug]['files']):
        problems.append(f'figure {slug!r} was saved but its file is gone')
    manifest = {
      'schema': 1,
      'status': 'failed' if problems else 'complete',
      'problems': problems,
      'notebook': self.notebook,
      'notebook_sha256': self._notebook_hash,
      'profile': self.profile,
      'seed': self.seed,
      'started': self._started,
      'finished': _now(),
      'seconds': round(time.monotonic() - self._start_time, 3),
      'environment': dict(self._environment),
      'data': self._data,
      'metrics': metrics,
      'figures': list(self._figures.values()),
    }
    write_json(self.directory / 'manifest.json', manifest)
    if problems:
      raise RunIncomplete(f'{self.notebook} is not complete:\n- ' + '\n- '.join(problems))
    shown = f'{len(metrics)} metrics, {len(self._figures)} figures'
    print(f'{self.notebook} ({self.profile}) is complete: {shown}, {manifest["seconds"]:.0f} s.')

  def _judged(self, record: dict[str, Any]) -> dict[str, Any]:
    band: Band | None = self._bands.get(record['metric'])
    if band is None:
      return {**record, 'band': None, 'in_band': None}
    return {
      **record,
      'band': band.as_json(),
      'in_band': not isinstance(record['value'], str) and record['value'] in band,
    }


def _interactive_directory() -> Path:
  base = project_root() / 'runs' / f'interactive-{datetime.datetime.now():%Y%m%d-%H%M%S}'
  number, directory = 1, base
  while directory.exists():
    number += 1
    directory = base.with_name(f'{base.name}-{number}')
  return directory


def _number(value: Any, name: str) -> float | int:
  try:
    if isinstance(value, bool | str):
      raise TypeError
    return value if isinstance(value, int) else float(value)
  except (TypeError, ValueError):
    raise RequestError(f'Metric {name!r} must be one real number; got {type(value).__name__}: {value!r:.60}.') from None


def _as_json(value: float) -> float | str:
  return value if math.isfinite(value) else str(float(value))


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
