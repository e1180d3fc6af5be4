"""How a file is written so that a crash at any moment leaves the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
