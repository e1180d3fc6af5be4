"""Files that are written so that a crash leaves the old one or the new one, and read so that damage shows."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DamagedFile(ValueError):
  """A file is there and is not what was written. The text is a sentence that names it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A place to write a file, which gets the name `path` once the block is done and its content is on the disk.

      with replacing(path) as aside:
        aside.write_bytes(content)

  If the block fails, what stood at `path` before still does, and nothing is left of the new one. The folder is made.

  Raises:
    OSError: if the file cannot be written there.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  folder = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
  try:
    aside = folder / path.name
    yield aside
    with aside.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(aside, path)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def read_text(path: Path) -> str | None:
  """The content of a text file in UTF-8; None where there is no such file.

  Raises:
    DamagedFile: if it is no regular file, or not UTF-8.
    OSError: if it cannot be read, which says nothing about its content.
  """
  try:
    if not stat.S_ISREG(path.stat().st_mode):
      raise DamagedFile(f'{path} is no regular file.')
    return path.read_text(encoding='utf-8')
  except (FileNotFoundError, NotADirectoryError):
    return None
  except UnicodeDecodeError as error:
    raise DamagedFile(f'{path} is damaged: byte {error.start} is not UTF-8.') from None


def read_json(path: Path, shape: Any = object) -> Any | None:
  """The content of a small JSON file; None where there is no such file.

  Args:
    shape: what it must hold (`check_shape`).

  Raises:
    DamagedFile: if it holds something else, or is not JSON.
    OSError: if it cannot be read, which says nothing about its content.
  """
  text = read_text(path)
  return None if text is None else parse_json(text, shape, str(path))


def parse_json(text: str, shape: Any, name: str) -> Any:
  """A text as JSON of a shape, without numbers that are not finite. Raises DamagedFile, which names it by `name`."""
  try:
    value = json.loads(text, parse_constant=_refuse)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair could not be written again
  except (ValueError, RecursionError) as error:
    raise DamagedFile(f'{name} is damaged: it is not JSON ({error}).') from None
  if wrong := misfit(value, shape):
    raise DamagedFile(f'{name} is damaged: {wrong}.')
  return value


def misfit(value: Any, shape: Any, where: str = 'its content') -> str:
  """What is wrong with a JSON value, in words; '' if nothing is.

  Args:
    shape: None, a type, or a predicate; `{'key': shape}` = an object with these keys at least; `{predicate: shape}` =
      an object with such keys only; `[shape]` = a list; `(shape, shape)` = one of these; object = anything.
  """
  wrong = f'{where} is {value!r:.80}'
  if isinstance(shape, dict):
    if not isinstance(value, dict):
      return wrong
    for key, inner in shape.items():
      if isinstance(key, str) and key not in value:
        return f'{where} lacks {key!r}'
      for name in [key] if isinstance(key, str) else value:
        if found := misfit(name, str if isinstance(key, str) else key, 'a name') or misfit(value[name], inner, name):
          return found
    return ''
  if isinstance(shape, list):
    if not isinstance(value, list):
      return wrong
    return next(filter(None, (misfit(item, shape[0], f'an item of {where}') for item in value)), '')
  if isinstance(shape, tuple):
    found = [misfit(value, one, where) for one in shape]
    return '' if '' in found else found[-1]
  if shape is None or isinstance(shape, type):
    return '' if shape is object or value is shape or type(value) is shape else wrong
  return '' if shape(value) else wrong


def finite(value: Any) -> bool:
  """A shape: a number that a float can hold."""
  try:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))
  except OverflowError:
    return False


def plain_name(value: Any) -> bool:
  """A shape: the name of a file or folder that stays in its folder and can be written in UTF-8."""
  return isinstance(value, str) and value.isprintable() and value[:1] not in ('', '.') and not set(value) & set('/\\')


@contextlib.contextmanager
def locked(path: Path, refusal: Exception) -> Iterator[None]:
  """Holds a lock file for this process; the lock goes with the process, however that ends.

  Raises:
    refusal: if another holds it.
  """
  import fcntl

  with path.open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise refusal from None
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # some network disks know no locks
        raise
    yield


def _refuse(constant: str) -> None:
  raise ValueError(f'{constant} is no number')
