"""Prepares bundled TFDS sets once, on disk, and reads them back: no network, no TensorFlow, nothing half-written."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_lib.data.loading import ArraySource, stack

ABANDONED_AFTER_SECONDS = 3600


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
  """Every split of a prepared set in memory, in the order of `id`: TFDS stores records in the order of a hash."""
  builder = import_tfds().builder_from_directory(str(folder))
  splits = {}
  for name in builder.info.splits:
    arrays = stack(builder.as_data_source(split=name))
    order = np.argsort(arrays['id'])
    splits[name] = ArraySource({key: value[order] for key, value in arrays.items()})
  return splits
