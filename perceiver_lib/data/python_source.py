"""The standard library of the interpreter that runs: about 10 MB of Python that is always there, without its tests."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path

from perceiver_lib.data.base import DataSet, Provenance, sha256
from perceiver_lib.data.splits import by_hash
from perceiver_lib.data.text import Documents

HELD_OUT_SHARE = 20 / 256
"""Of the top-level modules, for the test and again for validation."""

_NOT_READ = {'__pycache__', 'site-packages', 'dist-packages', 'test', 'tests', 'idle_test', 'encodings'}
"""Folders of tests, of other packages, and of tables of character sets, which a program wrote."""
_COPIES = {'token': 'lib2to3', 'tokenize': 'lib2to3'}
"""Modules of which another module holds a copy (until Python 3.12)."""


def split_of(module: str) -> str:
  """Split of a top-level module: its name decides, and about one in thirteen each goes to validation and test.

  `_pyio` goes with `io`, `_pydecimal` with `decimal` and so on, because they repeat each other.
  """
  family = _COPIES.get(module, module.removeprefix('_py').lstrip('_'))
  # Salted so that no single package makes up most of a held-out split.
  return by_hash(f'5 {family}', test=HELD_OUT_SHARE, validation=HELD_OUT_SHARE)


def load() -> DataSet:
  """One document a file; all files of a top-level module are in the same split; every split is a `Documents`.

  The content differs between versions and patch levels of Python, so compare results of one version only.
  """
  folder = Path(sysconfig.get_paths()['stdlib'])
  splits: dict[str, dict[str, bytes]] = {'train': {}, 'validation': {}, 'test': {}}
  for path in sorted(folder.rglob('*.py')):
    relative = path.relative_to(folder)
    # _sysconfigdata is a generated record of how this interpreter was built.
    if _NOT_READ.isdisjoint(relative.parts) and not path.name.startswith('_sysconfigdata') and path.stat().st_size:
      splits[split_of(relative.parts[0].removesuffix('.py'))][relative.as_posix()] = path.read_bytes()
  if not all(splits.values()):
    raise FileNotFoundError(f'The source files of the standard library are not in {folder}: this Python ships without.')
  documents = {split: Documents.of(texts) for split, texts in splits.items()}
  return DataSet(
    **documents,
    provenance=Provenance(
      name='python_source',
      kind='real',
      source=f'standard library of {platform.python_implementation()} {platform.python_version()}, without tests',
      licence='PSF-2.0',
      counts={f'{split} files': len(texts) for split, texts in splits.items()},
      checksum=sha256(text for texts in splits.values() for text in texts.values()),
      note=(
        'split by top-level module, copies kept together; '
        + ' / '.join(f'{corpus.num_bytes:,}' for corpus in documents.values())
        + ' bytes; differs between patch levels of Python'
      ),
    ),
  )
