"""TFDS sets on disk: bundled ones are prepared once, those that the user prepared are opened; never a network."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from perceiver_lib.data.loading import ArraySource, stack
from perceiver_lib.data.splits import carve

ABANDONED_AFTER_SECONDS = 3600
DISK_FAILURES = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE}
"""What says nothing of the files that were to be read."""


def data_directory(data_dir: str | os.PathLike | None = None) -> Path:
  """Where prepared sets lie: the argument, else PERCEIVER_DATA_DIR, else ~/.cache/perceiver_lib/data."""
  chosen = data_dir or os.environ.get('PERCEIVER_DATA_DIR') or '~/.cache/perceiver_lib/data'
  return Path(chosen).expanduser()


def import_tfds() -> Any:
  """TFDS without its progress bars, which flood an executed notebook.

  Raises:
    ModuleNotFoundError: with the pip command to run.
  """
  try:
    import tensorflow_datasets as tfds
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'This data set is stored by TensorFlow Datasets, which needs {error.name!r}: '
      'pip install tensorflow-datasets array-record (TensorFlow itself is not needed).',
      name=error.name,
    ) from error
  tfds.disable_progress_bar()
  return tfds


def prepare(builder_class: type, data_dir: str | os.PathLike | None = None) -> Path:
  """The folder of a prepared set, prepared now if it is not there.

  Preparation happens in a folder of its own, which is renamed once complete. So a killed process leaves nothing that
  looks prepared, and of two processes that prepare at once the first to finish wins and the other uses its files.

  Raises:
    PermissionError: if the folder can't be written; the sentence names PERCEIVER_DATA_DIR.
  """
  root = data_directory(data_dir)
  relative = Path(builder_class.name) / str(builder_class.VERSION)
  prepared = root / relative
  if prepared.exists():
    return prepared
  try:
    prepared.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix='.preparing-', dir=root))
  except OSError as error:
    raise PermissionError(
      f"Data can't be prepared in {root} ({error.strerror}): pass another data_dir or set PERCEIVER_DATA_DIR."
    ) from error
  try:
    _remove_abandoned(root)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads, which it does not
      builder_class(data_dir=str(workplace), file_format='array_record').download_and_prepare()
    with contextlib.suppress(OSError):  # a folder that is not empty can't be replaced: another process was first
      (workplace / relative).rename(prepared)
    if not prepared.exists():
      raise FileNotFoundError(f'{relative} was prepared but could not be moved to {prepared}: check that folder.')
  finally:
    shutil.rmtree(workplace, ignore_errors=True)
  return prepared


def _remove_abandoned(root: Path) -> None:
  for folder in root.glob('.preparing-*'):
    with contextlib.suppress(OSError):  # another process may remove it too
      if time.time() - folder.stat().st_mtime > ABANDONED_AFTER_SECONDS:
        shutil.rmtree(folder, ignore_errors=True)


def read_prepared(folder: Path) -> dict[str, ArraySource]:
  """Every split of a prepared set in memory, in the order of `id`: TFDS stores records in the order of a hash.

  Raises:
    ValueError: if its files are damaged.
  """
  tfds, splits = import_tfds(), {}
  with naming_damage(folder):
    builder = tfds.builder_from_directory(str(folder))
    for name in ('train', 'validation', 'test'):
      arrays = stack(builder.as_data_source(split=name))
      order = np.argsort(arrays['id'])
      splits[name] = ArraySource({key: value[order] for key, value in arrays.items()})
  return splits


@contextlib.contextmanager
def naming_damage(folder: str | os.PathLike) -> Iterator[None]:
  """Turns whatever a reader of damaged files stumbles over into one ValueError that names the folder to delete.

  A disk that fails, or too many open files, is no damage: that error stays what it is.
  """
  try:
    yield
  except Exception as error:
    causes = (error, error.__cause__)  # TFDS wraps what it reads with
    if any(isinstance(cause, OSError) and cause.errno in DISK_FAILURES for cause in causes):
      raise
    raise _damaged(folder, error) from error


def _damaged(folder: str | os.PathLike, error: Exception) -> ValueError:
  cause = f'{type(error).__name__}: {error}'.splitlines()[0]
  return ValueError(f'{os.fspath(folder)} is damaged ({cause}): delete it and prepare it again.')


def named_builder(name: str, data_dir: str | os.PathLike | None, *, kind: str, choices: str) -> Any:
  """The TFDS builder of a name.

  Args:
    data_dir: where prepared sets lie; by default where TFDS looks itself.
    kind, choices: of the data, for the sentence if there is no such set.

  Raises:
    FileNotFoundError: if TFDS knows no set of this name.
  """
  tfds = import_tfds()
  try:
    return tfds.builder(name, data_dir=None if data_dir is None else str(Path(data_dir).expanduser()))
  except tfds.core.DatasetNotFoundError:
    raise FileNotFoundError(f'There is no {kind} set {name!r}: choose {choices}.') from None


def open_splits(builder: Any, *, seed: int | None) -> tuple[dict[str, tuple[Any, Int[np.ndarray, '_']]], Sequence[str]]:
  """{split: (TFDS source, which of its rows)} for train, validation and test, and which of them TFDS does not have.

  A missing test or validation split is a tenth of train.

  Args:
    seed: of the rows that are carved out of train; None = from its end, where neighbouring examples belong together.

  Raises:
    FileNotFoundError: if the set is not prepared, or without random access, with the command that does it.
  """
  sources = {}
  for split in ('train', 'validation', 'test'):
    # tfds.testing.mock_data knows no splits, but gives them.
    if split in builder.info.splits or not builder.info.splits:
      try:
        sources[split] = builder.as_data_source(split=split)
      except NotImplementedError as error:
        if not Path(str(builder.data_path)).exists():
          continue  # TFDS looks at the format first, at the files later
        raise FileNotFoundError(
          f'{builder.name!r} in {builder.data_path} is prepared in a format without random access: convert it with '
          f'`tfds build {builder.name} --file_format=array_record --data_dir=DIR` and pass DIR as data_dir.'
        ) from error
      except (KeyError, AssertionError):  # absent, or nothing is prepared
        continue
      except Exception as error:
        raise _damaged(str(builder.data_path), error) from error
  if 'train' not in sources:
    raise FileNotFoundError(
      f'{builder.name!r} is not prepared in {builder.data_path}: on a machine with a network run `pip install '
      f'tensorflow tensorflow-datasets && tfds build {builder.name} --file_format=array_record --data_dir=DIR`, '
      'copy DIR here and pass it as data_dir.'
    )
  rows = {split: np.arange(len(source)) for split, source in sources.items()}
  size, carved = len(rows['train']) // 10, [split for split in ('test', 'validation') if split not in rows]
  for number, split in enumerate(carved):
    train = rows['train']
    rest, part = (
      np.split(np.arange(len(train)), [len(train) - size])
      if seed is None
      else carve(len(train), size, seed=seed + number)
    )
    sources[split], rows[split], rows['train'] = sources['train'], train[part], train[rest]
  return {split: (sources[split], rows[split]) for split in ('train', 'validation', 'test')}, carved


def tfds_licence(builder: Any) -> str:
  return builder.info.redistribution_info.license or f'see {builder.info.homepage}'
