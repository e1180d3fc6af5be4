"""Text by name: the bundled corpora, any TFDS set with a text feature, or the user's own file or folder."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_lib.data.base import DataSet, Provenance, sha256
from perceiver_lib.data.preparation import (
  data_directory,
  import_tfds,
  named_builder,
  naming_damage,
  open_splits,
  tfds_licence,
)
from perceiver_lib.data.splits import filled_by_hash
from perceiver_lib.data.text import SEPARATOR, Documents
from perceiver_lib.data.user_files import files_below, user_path

BUNDLED = ('shakespeare', 'python_source')
SUFFIXES = ('.txt', '.md', '.py')
DOCUMENTS_A_GROUP = 10
"""Examples of a TFDS set that make up one document."""
HELD_OUT_SHARE = 0.1
"""Of the bytes, for validation and again for the test."""


def load_corpus(name: str | os.PathLike, *, data_dir: str | os.PathLike | None = None) -> DataSet:
  """Text in three splits, every one a `Documents`.

  Args:
    name: 'shakespeare' or 'python_source' (bundled); the name of a TFDS text set that has been prepared in the
      array_record format, such as 'lm1b' or 'imdb_reviews'; or a path to a text file or a folder of them that begins
      with '.', '/' or '~', or has a separator in it (see `from_files`).
    data_dir: where TFDS sets lie. Default: TFDS's own (TFDS_DATA_DIR or ~/tensorflow_datasets).

  Raises:
    FileNotFoundError: if there is no such set or file, or it is not prepared, with the command that prepares it.
    ValueError: if a TFDS set has no text, or there is too little of it to split.
  """
  if name in BUNDLED:
    return importlib.import_module(f'perceiver_lib.data.{name}').load()
  if (path := user_path(name)) is not None:
    return from_files(path)
  choices = f"{' or '.join(map(repr, BUNDLED))} (bundled), a TFDS text set such as 'lm1b', or a file ('./book.txt')"
  return _from_builder(named_builder(str(name), data_dir, kind='text', choices=choices), data_dir)


def from_files(path: str | os.PathLike) -> DataSet:
  """A text file of the user, or all files of a folder (and below) that end in one of `SUFFIXES`, in memory.

  What is hidden and what programs put beside files is no text: see `user_files.files_below`.

  From ten files on whole files are held out, chosen by a hash of their paths until they make up a tenth of the bytes;
  of fewer, each file is cut at line ends into 80 / 10 / 10 %, with a gap of a hundredth of the file between two parts.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if there is too little text to split.
  """
  path = Path(path).expanduser()
  files = files_below(path, SUFFIXES) if path.is_dir() else [path]
  if not files or not files[0].is_file():
    raise FileNotFoundError(f'{path} must be a text file, or a folder with files that end in {", ".join(SUFFIXES)}.')
  texts = {(file.relative_to(path).as_posix() if path.is_dir() else path.name): file.read_bytes() for file in files}
  splits: dict[str, dict[str, bytes]] = {'train': {}, 'validation': {}, 'test': {}}
  if len(texts) >= 10:
    sizes = {name: len(text) for name, text in texts.items()}
    for name, split in filled_by_hash(sizes, test=HELD_OUT_SHARE, validation=HELD_OUT_SHARE).items():
      splits[split][name] = texts[name]
  else:
    for name, text in texts.items():
      for split, part in zip(splits, _cut(text), strict=True):
        splits[split][name] = part
  documents = {split: Documents.of(parts) for split, parts in splits.items()}
  if not all(part.num_bytes for part in documents.values()):
    raise ValueError(f'{path} has {sum(map(len, texts.values()))} bytes in {len(texts)} files, too little to split.')
  return DataSet(
    **documents,
    provenance=Provenance(
      name=path.name,
      kind='real',
      source=f'{len(files)} files of the user',
      licence='known to the user',
      counts={f'{split} bytes': part.num_bytes for split, part in documents.items()},
      checksum=sha256(texts.values()),
      note='whole files are held out' if len(texts) >= 10 else 'the last fifth of each file is held out, after gaps',
    ),
  )


def _cut(text: bytes) -> tuple[bytes, bytes, bytes]:
  places = (int(share * len(text)) for share in (1 - 2 * HELD_OUT_SHARE, 1 - HELD_OUT_SHARE))
  first, second = (text.find(b'\n', place) + 1 or _at_character(text, place) for place in places)
  gap = len(text) // 100
  after_first, after_second = (_at_character(text, place + gap) for place in (first, second))
  return text[:first], text[after_first:second], text[after_second:]


def _at_character(text: bytes, place: int) -> int:
  """The place, or the next one at which a character of UTF-8 begins."""
  return next((at for at in range(place, min(place + 4, len(text))) if text[at] & 0xC0 != 0x80), place)


def _from_builder(builder: Any, data_dir: str | os.PathLike | None) -> DataSet:
  """The bytes of a TFDS set, copied once, example by example, and mapped from there: it may be larger than memory.

  Consecutive examples are joined by blank lines into groups, as the paper does with ten documents before it crops
  (2107.14795, language).
  """
  features = [key for key, value in builder.info.features.items() if isinstance(value, import_tfds().features.Text)]
  if not features:
    raise ValueError(f'{builder.name!r} is no set of texts; its features are {", ".join(builder.info.features)}.')
  opened, _ = open_splits(builder, seed=None)
  # tfds.testing.mock_data has neither files nor known splits; then everything stays in memory.
  is_prepared = bool(builder.info.splits)
  folder = data_directory(data_dir) / 'byte_corpora' / f'{builder.info.full_name}-{features[0]}-{DOCUMENTS_A_GROUP}'
  splits: dict[str, Documents] = {}
  for split, (source, rows) in opened.items():
    groups = (
      SEPARATOR.join(_as_bytes(source[int(row)][features[0]]) for row in rows[start : start + DOCUMENTS_A_GROUP])
      for start in range(0, len(rows), DOCUMENTS_A_GROUP)
    )
    if not is_prepared:
      splits[split] = Documents.of({str(number): text for number, text in enumerate(groups)})
    elif (folder / split).exists():
      splits[split] = open_corpus(folder / split)
    else:
      splits[split] = write_corpus(groups, folder / split)
  return DataSet(
    **splits,
    provenance=Provenance(
      name=builder.name,
      kind='real' if is_prepared else 'mock',
      source=f'TFDS {builder.info.full_name}, feature {features[0]!r}',
      licence=tfds_licence(builder),
      counts={f'{split} bytes': corpus.num_bytes for split, corpus in splits.items()},
      checksum=sha256(corpus.checksum.encode() for corpus in splits.values()),
      note=f'{DOCUMENTS_A_GROUP} examples a document, joined by blank lines',
    ),
  )


def _as_bytes(text: str | bytes) -> bytes:
  return text.encode('utf-8') if isinstance(text, str) else text


def write_corpus(texts: Iterable[bytes], folder: str | os.PathLike) -> Documents:
  """Writes a stream of documents to a folder and maps it; one document at a time is in memory.

  A folder appears only when it is complete.

  Raises:
    FileExistsError: if the folder is already there.
    ValueError: if there is no byte to write.
  """
  folder = Path(folder)
  if folder.exists():
    raise FileExistsError(f'{folder} is already there: open it with open_corpus, or delete it to write it anew.')
  folder.parent.mkdir(parents=True, exist_ok=True)
  workplace = Path(tempfile.mkdtemp(prefix='.writing-', dir=folder.parent))
  try:
    borders, digest = [0], hashlib.sha256()
    with open(workplace / 'bytes.bin', 'wb') as file:
      for text in texts:
        file.write(text)
        digest.update(text)
        borders.append(borders[-1] + len(text))
    if not borders[-1]:
      raise ValueError(f'A corpus needs at least one byte; {len(borders) - 1} documents were given, all empty.')
    np.save(workplace / 'borders.npy', np.array(borders, np.int64))
    (workplace / 'corpus.json').write_text(json.dumps({'bytes': borders[-1], 'sha256': digest.hexdigest()}))
    workplace.rename(folder)
  finally:
    shutil.rmtree(workplace, ignore_errors=True)
  return open_corpus(folder)


def open_corpus(folder: str | os.PathLike) -> Documents:
  """Maps what `write_corpus` wrote, without reading it.

  Raises:
    FileNotFoundError: if the folder is not one of `write_corpus`.
    ValueError: if its files don't fit together.
  """
  folder = Path(folder)
  if not (folder / 'corpus.json').exists():
    raise FileNotFoundError(f'{folder} is no prepared corpus (it has no corpus.json): make it with write_corpus.')
  with naming_damage(folder):
    expected = json.loads((folder / 'corpus.json').read_text())['bytes']
    data = np.memmap(folder / 'bytes.bin', np.uint8, mode='r')
    borders = np.load(folder / 'borders.npy')
    if not len(data) == borders[-1] == expected or (np.diff(borders, prepend=0) < 0).any():
      raise ValueError(f'{len(data)} bytes where {expected} were written')
  return Documents(data=data, borders=borders)
