"""Reading and writing the small files of a run so that a crash at any moment leaves whole files behind."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.files import replacing


def write_text(path: Path, text: str) -> None:
  """Writes a whole file or nothing: a reader sees the old content or the new, never a part."""
  with replacing(path) as aside:
    aside.write_text(text, encoding='utf-8')


def write_json(path: Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + '\n')


def read_json(path: Path) -> Any | None:
  """The content of a JSON file, or None where there is no such file or it is not JSON."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
    return None


def append_record(path: Path, record: Mapping[str, Any]) -> None:
  """Adds one line of JSON and returns when it is on the disk, so that a killed kernel loses nothing."""
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + '\n')
    file.flush()
    os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
  """The whole lines of a JSON-lines file; a last line that a crash cut short is left out."""
  records = []
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except FileNotFoundError:
    return []
  for line in lines:
    with contextlib.suppress(json.JSONDecodeError):
      records.append(json.loads(line))
  return records


def set_aside(folder: Path, names: tuple[str, ...]) -> None:
  """Moves the named entries of an earlier attempt to `earlier/<number>`: a new attempt overwrites nothing."""
  present = [folder / name for name in names if (folder / name).exists()]
  if not present:
    return
  number = 1
  while (folder / 'earlier' / str(number)).exists():
    number += 1
  target = folder / 'earlier' / str(number)
  target.mkdir(parents=True)
  for path in present:
    path.rename(target / path.name)


def project_root() -> Path:
  """The folder that holds `notebooks/`: the current one or a parent of it, else the checkout of this package."""
  here = Path.cwd()
  for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
    if (folder / 'notebooks').is_dir():
      return folder
  return here
