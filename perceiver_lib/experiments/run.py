"""The run context: what a notebook records as it goes, and must have shown when it ends.

    run = start_run('01_perceiver_images_as_bytes', profile=profile, seed=seed, run_dir=run_dir)
    sizes = run.sizes(smoke={'steps': 3}, demo={'steps': 900}, full={'steps': 20_000})
    result = fit(..., num_steps=sizes.steps, checkpoint=run.checkpoint('main', config=config, sizes=sizes))
    run.log('test_accuracy', 97.1, '%', baselines={'linear classifier': 89.0, 'small CNN': 96.0}, best=max)
    run.save_figure(figure, 'learning_curve')
    run.finish()

Its metrics and figures are declared in `notebooks/bands.json` (`experiments.bands`). Everything lies in one folder:
`metrics.jsonl` (a line at once, on the disk before the call returns), `figures/`, `checkpoints/`, `weights/`, and at
the end `manifest.json`, whose status "complete" only `finish()` writes.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.bands import FILE_NAME as BANDS_FILE
from perceiver_lib.experiments.bands import Declaration, load_declarations
from perceiver_lib.experiments.environment import Stamp, commit_name, environment_stamp
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.figures import save_figure_files, show_in_notebook
from perceiver_lib.experiments.files import (
  REQUEST,
  WEIGHTS,
  append_record,
  file_hash,
  project_root,
  published_name,
  set_aside,
  write_json,
)
from perceiver_lib.experiments.metric_records import as_row, metric_record
from perceiver_lib.experiments.notebooks import notebook_hash
from perceiver_lib.experiments.profiles import PROFILES, check_profile
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.wording import describe_metric
from perceiver_lib.files import read_json
from perceiver_lib.training.checkpoints import Checkpointing, fingerprint
from perceiver_lib.training.host import enable_compilation_cache
from perceiver_lib.training.progress import in_notebook

METRIC_MIME_TYPE = 'application/vnd.perceiver.metric+json'
OWN_FILES = ('manifest.json', 'metrics.jsonl', 'figures')


class RunIncomplete(AssertionError):
  """A notebook reached its end without having shown what it declared. The text lists what is missing or off."""


def start_run(notebook: str, *, profile: str, seed: int, run_dir: str = '', train: bool = True) -> Run:
  """Opens the run of one notebook, with JAX's persistent compilation cache on.

  Args:
    notebook: the notebook's file name without suffix.
    profile: one of `profiles.PROFILES`.
    seed: of everything random in the notebook.
    run_dir: the notebook's own folder, given by the runner. Empty: `runs/interactive-<time>` under the project.
    train: False = the committed weights of the demo profile take the place of the trainings that they came from.

  Raises:
    RequestError, DamagedFile: for an unknown profile, a malformed declaration, a kernel of another environment, or if
      no weights are committed that fit.
  """
  check_profile(profile)
  directory = Path(run_dir).expanduser().resolve() if run_dir else _interactive_directory()
  request = read_json(directory / 'request.json', REQUEST) or {}
  if request and request['executable'] != sys.executable:
    raise RequestError(
      f'This kernel runs {sys.executable}, the runner runs {request["executable"]}: '
      'a python3 kernel of another environment was started; reinstall ipykernel in this one.'
    )
  source = Path(request['source']) if request else project_root() / 'notebooks' / f'{notebook}.ipynb'
  declared = load_declarations(source.parent / BANDS_FILE).get(notebook)
  if request and declared is None:
    raise RequestError(f'{source.parent / BANDS_FILE} does not say which metrics and figures {notebook} must show.')
  weights = sorted((source.parent / WEIGHTS).glob(published_name(notebook, 'demo', '*.safetensors')))
  if not train and not (weights and profile == 'demo'):
    raise RequestError(f'No weights of {notebook} ({profile}) are committed; leave train=True.')
  directory.mkdir(parents=True, exist_ok=True)
  set_aside(directory, OWN_FILES)
  enable_compilation_cache()
  return Run(
    notebook=notebook,
    profile=profile,
    seed=seed,
    directory=directory,
    source=source,
    declared=declared,
    weights=() if train else weights,
    # A changed parameter is another experiment, and interactively nobody knows what was changed: bands inform there.
    bands_bind=bool(request) and not request['overrides'],
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
    source: Path,
    declared: Declaration | None,
    bands_bind: bool,
    weights: Sequence[Path] = (),
  ):
    self.notebook, self.profile, self.seed, self.directory = notebook, profile, seed, directory
    self._declared = declared
    self._bands_bind = bands_bind
    self._committed = {path.name: path for path in weights}
    self._loaded: dict[str, str] = {}
    self._source = source
    self._notebook_hash = notebook_hash(source) if source.exists() else ''
    self._environment = environment_stamp(project_root())
    self._started, self._start_time = _now(), time.monotonic()
    self._metrics: dict[str, dict[str, Any]] = {}
    self._figures: dict[str, dict[str, Any]] = {}
    self._data: list[dict[str, Any]] = []
    self._sizes: dict[str, Any] = {}

  def __repr__(self) -> str:
    return f'Run({self.notebook}, profile {self.profile}, seed {self.seed})'

  def checkpoint(self, name: str, *, every: int | None = None, **settings: Any) -> Checkpointing:
    """Where one training of this run keeps what it needs to continue, for `fit`; survives a resumed run.

    The trained weights go to the run's folder too. With `train=False` the committed ones of this name are used instead.

    Args:
      name: of the training, unique in the notebook.
      every: steps between checkpoints; None = a tenth of the training.
      settings: everything that makes the training what it is and that `fit` does not see: config, data checksum, sizes.
        A checkpoint with other settings is never used.
    """
    if isinstance(sizes := settings.get('sizes'), types.SimpleNamespace):
      settings['sizes'] = vars(sizes)
    file = re.sub(r'\W+', '_', name) + '.safetensors'
    published = published_name(self.notebook, self.profile, file)
    committed = self._committed.get(published)
    if committed is not None:
      self._loaded[published] = file_hash(committed)
    return Checkpointing(
      directory=self.directory / 'checkpoints' / name,
      fingerprint=fingerprint(**settings),
      every=every,
      weights=committed or self.directory / WEIGHTS / file,
      train=committed is None,
    )

  def committed(self, name: str) -> Path:
    """The committed weights `name`.safetensors of any notebook's demo run, for `load_weights`; the manifest says so.

    Raises:
      RequestError: with the names there are, if these are not among them.
    """
    found = {path.stem: path for path in (self._source.parent / WEIGHTS).glob('*.safetensors')}
    if name not in found:
      raise RequestError(f'No weights {name!r} are committed; there are {", ".join(sorted(found)) or "none"}.')
    self._loaded[found[name].name] = file_hash(found[name])
    return found[name]

  def sizes(self, **profiles: Mapping[str, Any]) -> types.SimpleNamespace:
    """The sizes of this profile as attributes, after a table of those of all profiles.

    Args:
      profiles: sizes by profile: `smoke={'steps': 3}, demo={'steps': 900}`; every profile has the same names.

    Raises:
      RequestError: if this run's profile is not among them, or their names differ.
    """
    if unknown := sorted(set(profiles) - set(PROFILES)):
      raise RequestError(f'Unknown profile {unknown[0]!r}; choose from {", ".join(PROFILES)}.')
    if self.profile not in profiles:
      raise RequestError(f'This notebook has no {self.profile!r} profile; it offers {", ".join(profiles)}.')
    names = list(profiles[self.profile])
    for profile, sizes in profiles.items():
      if different := sorted(set(names) ^ set(sizes)):
        raise RequestError(f'Profiles {self.profile} and {profile} must name the same sizes; {different[0]!r} differs.')
    self._sizes = dict(profiles[self.profile])
    header = ['size', *(f'**{name}**' if name == self.profile else name for name in profiles)]
    _display(Table(header, [[name, *(_plain(sizes[name]) for sizes in profiles.values())] for name in names]))
    return types.SimpleNamespace(**self._sizes)

  def environment(self) -> Stamp:
    """The stamp of this run: versions, devices, commit, seed, notebook hash, start time. Shown as a list."""
    own = {'notebook': self.notebook, 'profile': self.profile, 'seed': self.seed, 'started': self._started}
    return Stamp(own | {'notebook_sha256': self._notebook_hash} | self._environment)

  def record_data(self, provenance: Any) -> None:
    """Keeps where the data came from (a `data.base.Provenance`) for the manifest, and prints it."""
    self._data.append(dataclasses.asdict(provenance))
    print(provenance)

  def log(
    self,
    name: str,
    value: Any,
    unit: str = '',
    *,
    baselines: Mapping[str, Any] | None = None,
    best: Callable | None = None,
    paper: float | str | None = None,
  ) -> None:
    """Records a number for good and shows it beside the strongest of what it must be compared with.

    The last value of a name counts.

    Args:
      name: one of the declared metrics.
      value: a real number: Python, NumPy or JAX scalar.
      unit: '%', 'bits/byte', 's', ...
      baselines: what else was measured, or what the control reached, in words and in the same unit.
      best: `max` or `min`, which of several baselines is the strongest.
      paper: the published value, as a number or as words with its place ('78.0, Table 2').

    Raises:
      RequestError: for an undeclared name, something that is no number, or several baselines without `best`.
    """
    if self._declared is not None and name not in self._declared.metrics:
      raise RequestError(f'Metric {name!r} is not declared; {BANDS_FILE} has {list(self._declared.metrics)}.')
    record = metric_record(name, value, unit, baselines=baselines, best=best, paper=paper)
    append_record(self.directory / 'metrics.jsonl', {**record, 'time': _now()})
    self._metrics[name] = record
    if in_notebook():
      from IPython.display import display

      display({METRIC_MIME_TYPE: record, 'text/plain': describe_metric(record)}, raw=True)

  def results(self, *names: str) -> Table:
    """What was logged so far, as a table: every number beside each of its baselines and the paper's value.

    Args:
      names: metrics in this order; none = all.

    Raises:
      RequestError: for a name that was not logged.
    """
    if missing := [name for name in names if name not in self._metrics]:
      raise RequestError(f'Metric {missing[0]!r} was not logged yet; there are {", ".join(self._metrics)}.')
    rows = [as_row(self._metrics[name]) for name in names or self._metrics]
    return Table(
      ['metric', f'measured ({self.profile}, seed {self.seed})', 'beside it, strongest first', 'paper'], rows
    )

  def save_figure(self, figure: Any, slug: str, *, alt: str | None = None) -> None:
    """Saves a matplotlib figure as PNG at 150 dpi (and SVG where that is small) and shows it, once.

    Args:
      figure: a matplotlib Figure.
      slug: one of the declared figures.
      alt: what there is to see, in a sentence; None = what the plotting function said (`plots.theme.describe`).

    Raises:
      RequestError: for an undeclared slug, no alt text, or a blank figure.
    """
    if self._declared is not None and slug not in self._declared.figures:
      raise RequestError(f'Figure {slug!r} is not declared; {BANDS_FILE} has {list(self._declared.figures)}.')
    alt = alt or getattr(figure, 'alt_text', '')
    if not alt.strip():
      raise RequestError(f'Figure {slug!r} needs an alt text: one sentence that says what there is to see.')
    stamp = {
      'notebook': self.notebook,
      'profile': self.profile,
      'seed': str(self.seed),
      'commit': commit_name(self._environment),
    }
    folder = self.directory / 'figures'
    files = save_figure_files(figure, folder, slug, alt=alt, stamp=stamp)
    hashes = {name: file_hash(folder / name) for name in files}
    self._figures[slug] = {'slug': slug, 'alt': alt, 'files': hashes}
    show_in_notebook(figure, folder / files[0], alt)

  def finish(self) -> None:
    """Writes the manifest; it says "complete" if everything declared is there, finite, in its band and not blank.

    Bands bind when the runner started the notebook with its own parameters; else they are only reported.

    Raises:
      RunIncomplete: listing everything that is missing or off. The manifest then says "failed".
    """
    declared = self._declared or Declaration(figures=tuple(self._figures), metrics={name: {} for name in self._metrics})
    metrics = declared.judged(self._metrics, self.profile)
    saved = {
      slug: all((self.directory / 'figures' / file).is_file() for file in figure['files'])
      for slug, figure in self._figures.items()
    }
    problems = declared.problems(metrics, saved, bands_bind=self._bands_bind)
    manifest = {
      'schema': 2,
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
      'sizes': self._sizes,
      'data': self._data,
      'loaded_weights': self._loaded,
      'metrics': metrics,
      'figures': list(self._figures.values()),
      'weights': {path.name: file_hash(path) for path in sorted((self.directory / WEIGHTS).glob('*.safetensors'))},
    }
    write_json(self.directory / 'manifest.json', manifest)
    if problems:
      raise RunIncomplete(f'{self.notebook} is not complete:\n- ' + '\n- '.join(problems))
    shown = f'{len(metrics)} metrics, {len(self._figures)} figures'
    if self._loaded:
      shown += f', not trained here: {", ".join(self._loaded)}'
    print(f'{self.notebook} ({self.profile}) is complete: {shown}, {manifest["seconds"]:.0f} s.')


def _interactive_directory() -> Path:
  base = project_root() / 'runs' / f'interactive-{datetime.datetime.now():%Y%m%d-%H%M%S}'
  number, directory = 1, base
  while directory.exists():
    number += 1
    directory = base.with_name(f'{base.name}-{number}')
  return directory


def _plain(value: Any) -> str:
  return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _display(table: Table) -> None:
  if in_notebook():
    from IPython.display import display

    display(table)


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
