"""Checkpoints that are whole or absent: written aside and renamed, verified byte by byte, never silently reused."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perceiver_lib.files import DamagedFile, locked, read_json, replacing

MANIFEST = 'manifest.json'
_SHAPE = {'step': int, 'fingerprint': str, 'structure': [str], 'files': {str: str}, 'record': str, 'sha256': str}
_LOCKS: contextvars.ContextVar[contextlib.ExitStack] = contextvars.ContextVar('locks')


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
    weights: safetensors file of the trained weights in half precision and how they came about; None = none is written.
    train: False = read `weights`, of an earlier training, in place of training.
  """

  directory: str | os.PathLike
  fingerprint: str
  every: int | None = None
  resume: bool = True
  weights: str | os.PathLike | None = None
  train: bool = True


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
  """Checkpoints of one run: `directory/<fingerprint>/step_00000100/`, holding orbax arrays and a sealed manifest.

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

  def lock(self) -> None:
    """Keeps other processes out of this run's folder until the surrounding `releasing_locks` ends.

    Raises:
      CheckpointError: if another training is at work there.
    """
    busy = CheckpointError(
      f'Another training with these settings is writing checkpoints to {self.folder}; wait for it, or name another '
      'folder.'
    )
    if jax.process_index():  # of the processes of one training, the first writes
      return
    with self._told('locked'):
      _LOCKS.get().enter_context(locked(self.root / f'.lock_{self.folder.name}', busy))

  def paths(self) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(
      path for path in self.folder.iterdir() if path.name.startswith('step_') and (path / MANIFEST).exists()
    )

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

    path = self.folder / _name(step)
    writing = self.folder / f'.writing_{path.name}'
    leader = jax.process_index() == 0
    with self._told(f'written at step {step}', clean=self._sweep):
      if leader:
        self._sweep()
        writing.mkdir()
      _barrier('checkpoint folder')
      with _quiet():
        ocp.save(writing / 'state', state)
      if leader:
        manifest = {
          'step': step,
          'fingerprint': self.fingerprint,
          'structure': structure(state),
          'files': _checksums(writing),
          'record': json.dumps(record),  # as text, for numbers in it may be NaN
        }
        with replacing(writing / MANIFEST) as aside:
          aside.write_text(json.dumps(manifest | {'sha256': _seal(manifest)}))
        if path.exists():
          _rename(path, f'unusable_{path.name}')
        os.rename(writing, path)
        for old in self.paths()[: -self.keep]:
          # A checkpoint that is half deleted is none: it loses its name first, and the next save sweeps up.
          shutil.rmtree(old.rename(self.folder / f'.deleting_{old.name}'), ignore_errors=True)
      _barrier('checkpoint')
    return path

  def restore(self, abstract_state: Any) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and fits, and a sentence on each that was passed over.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, which may differ from those it was saved with.

    Raises:
      CheckpointError: if the disk fails, which says nothing about the checkpoints: they stay as they are.
    """
    from orbax.checkpoint import v1 as ocp

    notes = []
    with self._told('read'):
      for path in reversed(self.paths()):
        try:
          manifest = self._verified(path, structure(abstract_state))
          with _quiet():
            state = ocp.load(path / 'state', abstract_state)
        except Exception as error:
          if not isinstance(error, DamagedFile) and not _incomplete(error):
            raise
          why = str(error) if isinstance(error, DamagedFile) else 'it was not written whole.'
          kept = _rename(path, f'unusable_{path.name}')
          notes.append(
            f'Checkpoint {path.name} cannot be used: {why} It is kept as {kept.name}; training goes on from the one '
            'before, or from scratch.'
          )
          continue
        return Checkpoint(step=manifest['step'], state=state, record=json.loads(manifest['record'])), notes
      if not notes and (others := self.others()):
        notes.append(
          f'No checkpoint of these settings in {self.root}, so training starts from scratch; those of '
          f'{len(others)} other setting(s) are kept: {", ".join(others[:3])}.'
        )
    return None, notes

  def _verified(self, path: Path, expected: list[str]) -> dict[str, Any]:
    """The manifest of a checkpoint that is whole and fits. Raises DamagedFile otherwise, OSError if the disk fails."""
    manifest = read_json(path / MANIFEST, _SHAPE)
    if manifest is None or manifest.pop('sha256') != _seal(manifest) or _name(manifest['step']) != path.name:
      raise DamagedFile(f'{MANIFEST} is not what was written.')
    if manifest['fingerprint'] != self.fingerprint:
      raise DamagedFile('it was written with other settings.')
    if differing := set(manifest['structure']) ^ set(expected):
      raise DamagedFile(f'its arrays are others, such as {min(differing)}.')
    if damaged := sorted(dict(set(manifest['files'].items()) ^ set(_checksums(path).items()))):
      raise DamagedFile(f'files are damaged or missing: {", ".join(damaged[:3])}.')
    return manifest

  def _sweep(self) -> None:
    """Removes what was left half written or half deleted."""
    for leftover in self.folder.glob('.*ing_step_*'):
      shutil.rmtree(leftover, ignore_errors=True)

  @contextlib.contextmanager
  def _told(self, done: str, clean: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Whatever the disk, orbax or tensorstore say becomes one CheckpointError, without their pages of traceback."""
    try:
      yield
    except CheckpointError:
      raise
    except Exception as error:
      reason, full = _reason(error)
      advice = 'Make room or name another folder' if full else 'Mend that'
      with contextlib.suppress(OSError):
        clean()
        last = self.paths()
        reason += f' The last good one is {last[-1].name if last else "none"}.'
      raise CheckpointError(
        f'Checkpoints in {self.folder} could not be {done}: {reason} {advice}, then run again to resume.'
      ) from None


@contextlib.contextmanager
def releasing_locks() -> Iterator[None]:
  """Frees what `CheckpointStore.lock` locked within: also after an error, whose traceback would keep it locked."""
  with contextlib.ExitStack() as locks:
    token = _LOCKS.set(locks)
    try:
      yield
    finally:
      _LOCKS.reset(token)


def _name(step: int) -> str:
  return f'step_{step:08d}'


def _seal(manifest: dict[str, Any]) -> str:
  """SHA-256 over every field of a manifest, and so over every file, whose own it holds."""
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
  """SHA-256 of every file but the manifest. Orbax itself does not notice every flipped byte."""
  digests = {}

  def fail(error: OSError) -> None:
    raise error

  for place, _, names in os.walk(folder, onerror=fail):
    for path in (Path(place, name) for name in names if name != MANIFEST):
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
  """Without what orbax logs, and its event loops say as they go, beside the error it raises."""
  disabled, hook = logging.root.manager.disable, sys.unraisablehook
  logging.disable(logging.ERROR)
  sys.unraisablehook = lambda _: None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', RuntimeWarning)
      try:
        yield
      except Exception as error:
        logging.getLogger('absl').addFilter(_not_of_orbax)  # its threads go on complaining for half a minute
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise
  finally:
    sys.unraisablehook = hook
    logging.disable(disabled)


def _not_of_orbax(record: logging.LogRecord) -> bool:
  return 'orbax' not in record.pathname


def _incomplete(error: Exception) -> bool:
  """Whether tensorstore misses arrays among files that are as they were written: orbax passed over a failing disk."""
  return _code(error) is None and re.match('NOT_FOUND|DATA_LOSS|FAILED_PRECONDITION', str(error)) is not None


def _code(error: Exception) -> int | None:
  """The number that the system gave, wherever in the text it hides."""
  found = re.search(r"\[Errno (\d+)\]|os_error_code='(\d+)'", str(error))
  return int(found[1] or found[2]) if found else getattr(error, 'errno', None)


def _reason(error: Exception) -> tuple[str, bool]:
  """What went wrong, as the system says it wherever it hides in the text, and whether room was lacking."""
  code = _code(error)
  if code is not None:
    return f'{os.strerror(code)}.', code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  line = (str(error).strip().splitlines() or [type(error).__name__])[0]
  return line if line.endswith('.') else f'{line}.', False
