"""Checkpoints that are whole or absent: written aside and renamed, verified byte by byte, never silently reused."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perceiver_lib.files import replacing

MANIFEST = 'manifest.json'


class CheckpointError(RuntimeError):
  """A checkpoint or weight file cannot be written or does not fit; the message says what to do."""


def fingerprint(**config: Any) -> str:
  """A hash of all that makes a run what it is: pass model config, data checksum, batch size, optimizer settings.

  Raises:
    TypeError: for values whose content cannot be told, such as functions: their text changes with every process.
  """

  def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
      return {'class': type(value).__qualname__, **fields}
    if isinstance(value, np.generic | np.ndarray):
      return value.tolist()
    raise TypeError(
      f'fingerprint needs numbers, strings, lists, dicts and dataclasses; got {type(value).__name__} {value!r}. '
      'Pass the settings it was made from.'
    )

  return hashlib.sha256(json.dumps(config, sort_keys=True, default=plain).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
  """Where `fit` keeps what a killed training goes on from, and what makes that training the same one.

  Attributes:
    directory: folder for the checkpoints; those of other settings in it are neither used nor touched.
    fingerprint: of all settings that `fit` does not see, by `fingerprint(...)`: model config, data, batch size,
      optimizer.
    every: steps between checkpoints; None = a tenth of the training. The last step has one anyway.
    resume: False = start from scratch and keep earlier checkpoints of the same settings under another name.
  """

  directory: str | os.PathLike
  fingerprint: str
  every: int | None = None
  resume: bool = True


def structure(state: Any) -> list[str]:
  """Path, shape and dtype of every array of a tree, a line each."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return [f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}' for path, leaf in leaves]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """What `CheckpointStore.restore` found: `state` after `step` updates, and the JSON record saved beside it."""

  step: int
  state: Any
  record: dict[str, Any]


class CheckpointStore:
  """Checkpoints of one run: `directory/<fingerprint>/step_00000100/`, holding orbax arrays and a manifest.

  Every fingerprint has a folder of its own, so a run with other settings neither reads nor overwrites these. The
  newest `keep` checkpoints stay; what this run did not write (other settings, broken ones) is never deleted.
  """

  def __init__(self, directory: str | os.PathLike, fingerprint: str, *, keep: int = 2):
    self.root = Path(directory).expanduser().absolute()
    self.folder = self.root / fingerprint[:16]
    self.fingerprint = fingerprint
    self.keep = keep
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise CheckpointError(
        f'Checkpoints cannot be written to {self.root}: {error.strerror}. Name another folder.'
      ) from None

  def paths(self) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in self.folder.glob(f'step_*/{MANIFEST}'))

  def others(self) -> list[str]:
    """Names of the folders that hold checkpoints of other settings."""
    return sorted({path.parts[-3] for path in self.root.glob(f'*/step_*/{MANIFEST}')} - {self.folder.name})

  def set_aside(self) -> str | None:
    """Renames this run's folder so that training starts anew and loses nothing. Returns what was done, if anything."""
    if not self.paths():
      return None
    kept = _rename(self.folder, f'{self.folder.name}_before')
    self.folder.mkdir()
    return f'Starting from scratch as asked; the earlier checkpoints of these settings are kept in {kept}.'

  def save(self, step: int, state: Any, record: dict[str, Any]) -> Path:
    """Writes a checkpoint under a hidden name and renames it once it is complete and on disk.

    Raises:
      CheckpointError: if it cannot be written; earlier checkpoints are untouched.
    """
    from orbax.checkpoint import v1 as ocp

    path = self.folder / f'step_{step:08d}'
    writing = self.folder / f'.writing_{path.name}'
    leader = jax.process_index() == 0
    try:
      if leader:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
      _barrier('checkpoint folder')
      with _quiet():
        ocp.save(writing / 'state', state)
      if leader:
        manifest = {
          'step': step,
          'fingerprint': self.fingerprint,
          'structure': structure(state),
          'files': _checksums(writing),
          'record': record,
        }
        with replacing(writing / MANIFEST) as aside:
          aside.write_text(json.dumps(manifest))
        if path.exists():
          _rename(path, f'unusable_{path.name}')
        os.rename(writing, path)
        for old in self.paths()[: -self.keep]:
          shutil.rmtree(old)
      _barrier('checkpoint')
    except (OSError, ValueError, RuntimeError) as error:
      shutil.rmtree(writing, ignore_errors=True)
      free = shutil.disk_usage(self.root).free
      last = self.paths()
      raise CheckpointError(
        f'The checkpoint of step {step} could not be written to {self.folder} ({free / 1e6:,.0f} MB free): '
        f'{_first_line(error)} The last good one is {last[-1].name if last else "none"}; make room or name another '
        'folder, then run again to resume.'
      ) from error
    return path

  def restore(self, abstract_state: Any) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and fits, and a sentence on each that was passed over.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, which may differ from those it was saved with.
    """
    from orbax.checkpoint import v1 as ocp

    notes = []
    for path in reversed(self.paths()):
      try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest['fingerprint'] != self.fingerprint:
          raise ValueError('it was written with other settings.')
        saved, expected = set(manifest['structure']), set(structure(abstract_state))
        if saved != expected:
          raise ValueError(f'its arrays are others, such as {min(saved ^ expected)}.')
        damaged = [name for name, digest in _checksums(path).items() if manifest['files'].pop(name, None) != digest]
        if damaged or manifest['files']:
          raise ValueError(f'files are damaged or missing: {", ".join([*damaged, *manifest["files"]][:3])}.')
        with _quiet():
          state = ocp.load(path / 'state', abstract_state)
        return Checkpoint(step=manifest['step'], state=state, record=manifest['record']), notes
      except Exception as error:  # a damaged file can surface as any error of json, orbax or tensorstore
        kept = _rename(path, f'unusable_{path.name}')
        notes.append(
          f'Checkpoint {path.name} cannot be used: {_first_line(error)} It is kept as {kept.name}; training goes on '
          'from the one before, or from scratch.'
        )
    if not notes and (others := self.others()):
      notes.append(
        f'No checkpoint of these settings in {self.root}, so training starts from scratch; those of '
        f'{len(others)} other setting(s) are kept: {", ".join(others[:3])}.'
      )
    return None, notes


def _checksums(folder: Path) -> dict[str, str]:
  """SHA-256 of every file but the manifest. Orbax itself does not notice every flipped byte."""
  digests = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name != MANIFEST:
      with open(path, 'rb') as file:
        digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests


def _rename(path: Path, name: str) -> Path:
  """Renames within the folder, to the first of name, name_2, name_3 ... that is free."""
  target, count = path.with_name(name), 1
  while target.exists():
    count += 1
    target = path.with_name(f'{name}_{count}')
  return path.rename(target)


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the traceback that orbax logs beside the error it raises."""
  disabled = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(disabled)


def _first_line(error: Exception) -> str:
  if os.strerror(errno.ENOSPC) in str(error):
    return f'{os.strerror(errno.ENOSPC)}.'
  line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
  return line if line.endswith('.') else f'{line}.'
