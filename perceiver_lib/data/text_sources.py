"""Text that the user brings: an own file or folder, or any TFDS set with a text feature, in memory or mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_lib.data.base import DataSet, Provenance, sha256
from perceiver_lib.data.preparation import data_directory, import_tfds
from perceiver_lib.data.text import SEPARATOR, Documents

HELD_OUT_SHARE = 0.1
"""Of the bytes, for validation and again for the test."""


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
  expected = json.loads((folder / 'corpus.json').read_text())['bytes']
  data = np.memmap(folder / 'bytes.bin', np.uint8, mode='r')
  borders = np.load(folder / 'borders.npy')
  if not len(data) == borders[-1] == expected:
    raise ValueError(
      f'{folder} is damaged: {len(data)} bytes where {expected} were written. Delete it and write it anew.'
    )
  return Documents(data=data, borders=borders)


def load_files(path: str | os.PathLike, *, suffixes: Sequence[str] = ('.txt', '.md', '.py')) -> DataSet:
  """A text file of the user, or all files of a folder (and below) that end in one of the suffixes.

  From ten files on whole files are held out, chosen by a hash of their paths until they make up a tenth of the bytes;
  of fewer, each file is cut at line ends into 80 / 10 / 10 %, with a gap of a hundredth of the file between two parts.
  Held in memory; for more than that use `write_corpus`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if there is too little text to split.
  """
  path = Path(path).expanduser()
  if path.is_dir():
    files = sorted(file for file in path.rglob('*') if file.suffix in suffixes and file.is_file())
    names = [file.relative_to(path).as_posix() for file in files]
  else:
    files, names = ([path], [path.name]) if path.is_file() else ([], [])
  if not files:
    raise FileNotFoundError(f'{path} must be a text file, or a folder with files that end in {", ".join(suffixes)}.')
  texts = {name: file.read_bytes() for name, file in zip(names, files, strict=True)}
  splits = _split_files(texts) if len(texts) >= 10 else _cut_files(texts)
  sizes = {split: sum(map(len, parts.values())) for split, parts in splits.items()}
  if not all(sizes.values()):
    raise ValueError(f'{path} has {sum(map(len, texts.values()))} bytes in {len(texts)} files, too little to split.')
  return DataSet(
    **{split: Documents.of(parts) for split, parts in splits.items()},
    provenance=Provenance(
      name=path.name,
      kind='real',
      source=f'{len(files)} files of the user',
      licence='known to the user',
      counts={f'{split} bytes': size for split, size in sizes.items()},
      checksum=sha256(texts.values()),
      note='whole files are held out' if len(texts) >= 10 else 'the last fifth of each file is held out, after gaps',
    ),
  )


def _split_files(texts: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
  splits: dict[str, dict[str, bytes]] = {'train': {}, 'validation': {}, 'test': {}}
  room = {split: HELD_OUT_SHARE * sum(map(len, texts.values())) for split in ('validation', 'test')}
  for name in sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest()):
    split = next((split for split in room if room[split] > 0), 'train')
    if split != 'train':
      room[split] -= len(texts[name])
    splits[split][name] = texts[name]
  return splits


def _cut_files(texts: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
  splits: dict[str, dict[str, bytes]] = {'train': {}, 'validation': {}, 'test': {}}
  for name, text in texts.items():
    gap = len(text) // 100

    def line_end(share: float, text: bytes = text) -> int:
      return text.find(b'\n', int(share * len(text))) + 1 or int(share * len(text))

    first, second = line_end(1 - 2 * HELD_OUT_SHARE), line_end(1 - HELD_OUT_SHARE)
    splits['train'][name] = text[:first]
    splits['validation'][name] = text[first + gap : second]
    splits['test'][name] = text[second + gap :]
  return splits


def load_tfds(
  name: str, *, data_dir: str | os.PathLike | None = None, feature: str = 'text', documents_a_group: int = 10
) -> DataSet:
  """A text set of TFDS, such as 'lm1b' or 'imdb_reviews', prepared in the format array_record.

  Its bytes are copied once, example by example, into `byte_corpora` in `data_dir` (or in the folder of this library's
  prepared sets) and mapped from there, so it may be larger than memory. Consecutive examples are joined by blank lines
  into groups, as the paper does with ten documents before it crops (2107.14795, language). A missing test or
  validation split is a tenth of the train split, from its end.

  Args:
    data_dir: where TFDS finds it; by default where TFDS looks itself.

  Raises:
    FileNotFoundError: if there is no such set, or it is not prepared, with the command that does it.
    ValueError: if it has no such feature.
  """
  tfds = import_tfds()
  try:
    builder = tfds.builder(name, data_dir=None if data_dir is None else str(Path(data_dir).expanduser()))
  except tfds.core.DatasetNotFoundError:
    raise FileNotFoundError(f'TFDS has no set {name!r}; for files of your own use load_files.') from None
  if feature not in builder.info.features:
    raise ValueError(f'{name} has no feature {feature!r}; it has {", ".join(builder.info.features)}.')
  # tfds.testing.mock_data has neither files nor known splits; then everything stays in memory.
  is_prepared = bool(builder.info.splits)
  examples = _examples(builder)
  folder = data_directory(data_dir) / 'byte_corpora' / f'{builder.info.full_name}-{feature}-{documents_a_group}'
  splits: dict[str, Documents] = {}
  for split, (source, places) in examples.items():
    groups = _grouped((_as_bytes(source[i][feature]) for i in places), documents_a_group)
    if not is_prepared:
      splits[split] = Documents.of({str(number): text for number, text in enumerate(groups)})
    elif (folder / split).exists():
      splits[split] = open_corpus(folder / split)
    else:
      splits[split] = write_corpus(groups, folder / split)
  return DataSet(
    **splits,
    provenance=Provenance(
      name=name,
      kind='real' if is_prepared else 'mock',
      source=f'TFDS {builder.info.full_name}, feature {feature!r}',
      licence=builder.info.redistribution_info.license or f'see {builder.info.homepage}',
      counts={f'{split} bytes': corpus.num_bytes for split, corpus in splits.items()},
      checksum=sha256([b''.join(corpus.checksum.encode() for corpus in splits.values())]),
      note=f'{documents_a_group} examples a document, joined by blank lines',
    ),
  )


def _examples(builder: Any) -> dict[str, tuple[Any, range]]:
  """{split: (TFDS source, which of its rows)} for the three splits."""
  sources = {}
  for split in ('train', 'validation', 'test'):
    if split in builder.info.splits or not builder.info.splits:
      try:
        sources[split] = builder.as_data_source(split=split)
      except (KeyError, NotImplementedError, AssertionError):
        continue
  if 'train' not in sources:
    raise FileNotFoundError(
      f'{builder.name!r} is not prepared for random access in {builder.data_path}: on a machine with a network run '
      f'`pip install tensorflow tensorflow-datasets && tfds build {builder.name} --file_format=array_record '
      '--data_dir=DIR`, copy DIR here and pass it as data_dir.'
    )
  stop = len(sources['train'])
  share = int(HELD_OUT_SHARE * stop)
  rows = {}
  for split in ('test', 'validation'):
    if split in sources:
      rows[split] = sources[split], range(len(sources[split]))
    else:
      rows[split], stop = (sources['train'], range(stop - share, stop)), stop - share
  return {'train': (sources['train'], range(stop)), 'validation': rows['validation'], 'test': rows['test']}


def _as_bytes(text: str | bytes) -> bytes:
  return text.encode('utf-8') if isinstance(text, str) else text


def _grouped(texts: Iterable[bytes], size: int) -> Iterator[bytes]:
  group: list[bytes] = []
  for text in texts:
    group.append(text)
    if len(group) == size:
      yield SEPARATOR.join(group)
      group = []
  if group:
    yield SEPARATOR.join(group)
