"""Documents as bytes, and what models read of them: windows in order, and random crops of one or several corpora.

A corpus is one array of bytes and the borders of its documents. The array may be a memory map, so a corpus may be
larger than memory; no window or crop ever crosses a border.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from perceiver_lib.data.base import sha256

SEPARATOR = b'\n\n'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
  """A `Source` of documents {'text': bytes, 'name': str}, stored end to end.

  Attributes:
    data: all bytes, in memory or mapped.
    borders: ascending; document i is `data[borders[i] : borders[i + 1]]`.
    names: one a document, or empty where there are too many to name.
  """

  data: UInt8[np.ndarray, 'total']
  borders: Int64[np.ndarray, 'borders']
  names: tuple[str, ...] = ()

  @classmethod
  def of(cls, texts: Mapping[str, bytes]) -> Documents:
    """Puts named documents end to end in memory, in the order given."""
    data = np.frombuffer(b''.join(texts.values()), np.uint8)
    borders = np.cumsum([0, *(len(text) for text in texts.values())]).astype(np.int64)
    return cls(data=data, borders=borders, names=tuple(texts))

  def __len__(self) -> int:
    return len(self.borders) - 1

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = range(len(self))[index]
    text = self.data[self.borders[index] : self.borders[index + 1]].tobytes()
    return {'text': text, 'name': self.names[index] if self.names else str(index)}

  @property
  def num_bytes(self) -> int:
    return int(self.borders[-1] - self.borders[0])

  @property
  def checksum(self) -> str:
    return sha256(self[index]['text'] for index in range(len(self)))

  def spread(self, count: int) -> Documents:
    """At most `count` documents, evenly spread, in memory: to measure on some where a split has thousands."""
    if len(self) <= count:
      return self
    chosen = [self[int(index)] for index in np.linspace(0, len(self) - 1, count)]
    return Documents.of({item['name']: item['text'] for item in chosen})

  def joined(self) -> bytes:
    """All documents as one text, a blank line between two: what compressors and n-gram tables are given."""
    return SEPARATOR.join(self[index]['text'] for index in range(len(self)))

  def read(self, starts: Int64[np.ndarray, 'b'], stops: Int64[np.ndarray, 'b'], length: int) -> dict[str, np.ndarray]:
    """Rows `data[start:stop]`, cut or zero-filled at the end to `length`: 'bytes' uint8, 'valid' bool [b, m]."""
    positions = starts[:, None] + np.arange(length)
    valid = positions < stops[:, None]
    rows = self.data[np.minimum(positions, len(self.data) - 1)]
    return {'bytes': np.where(valid, rows, np.uint8(0)), 'valid': valid}


class Windows:
  """Windows of every document in order, for evaluation; they score each byte exactly once.

  The last window of a document ends where the document ends, so no window is shorter than it must be.
  """

  def __init__(self, documents: Documents, length: int, stride: int | None = None):
    """Windows of `length` bytes, each `stride` bytes (by default `length`) after the one before.

    Raises:
      ValueError: unless 1 <= stride <= length, or if all documents are empty.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
      raise ValueError(f'Windows need 1 <= stride <= length, or bytes would be left out; got {stride} and {length}.')
    sizes = np.diff(documents.borders)
    if not sizes.any():
      raise ValueError('Windows need a document with at least one byte; all of these are empty.')
    counts = np.where(sizes > 0, 1 + np.maximum(-(-(sizes - length) // stride), 0), 0)
    self.documents, self.length = documents, length
    self._document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(self._document)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = sizes[self._document]
    self._start = np.minimum(number * stride, np.maximum(size - length, 0))
    self._num_seen = np.where(number > 0, (number - 1) * stride + length - self._start, 0)

  def __len__(self) -> int:
    return len(self._start)

  def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The windows of these numbers as one batch.

    Returns:
      'bytes' uint8 [b, length]; 'valid' bool [b, length], False beyond the end of a document shorter than a window;
      'scored' bool [b, length], the bytes that no earlier window has; 'document' and 'start' int64 [b], where the
      window lies.
    """
    index = np.asarray(indices, np.int64)
    document, start, borders = self._document[index], self._start[index], self.documents.borders
    batch = self.documents.read(borders[document] + start, borders[document + 1], self.length)
    scored = batch['valid'] & (np.arange(self.length) >= self._num_seen[index, None])
    return batch | {'scored': scored, 'document': document, 'start': start}


class RandomCrops:
  """Endless batches of crops from random places of one or several corpora, for training.

  Within a corpus every possible place of a crop is equally likely, so long documents are read more often. The batch of
  a step is a function of the seed and the step alone: training resumes anywhere without reading what came before.
  Batches: 'bytes' uint8 and 'valid' bool [b, m]; with several corpora also 'corpus' int32 [b], which one it was.
  """

  def __init__(
    self,
    corpora: Documents | Sequence[Documents],
    length: int,
    batch_size: int,
    *,
    seed: int,
    weights: Sequence[float] | None = None,
  ):
    """`weights`: the share of the crops taken from each corpus, as positive numbers; by default in proportion to bytes.

    Raises:
      ValueError: for an empty corpus, sizes below 1, or weights that do not fit.
    """
    self.corpora = [corpora] if isinstance(corpora, Documents) else list(corpora)
    if not self.corpora or not all(corpus.num_bytes for corpus in self.corpora) or min(length, batch_size) < 1:
      raise ValueError(
        'Crops need corpora that are not empty, and a length and batch size of 1 or more; got corpora of '
        f'{[corpus.num_bytes for corpus in self.corpora]} bytes, length {length}, batch size {batch_size}.'
      )
    weights = [corpus.num_bytes for corpus in self.corpora] if weights is None else weights
    if len(weights) != len(self.corpora) or not all(0 < weight < np.inf for weight in weights):
      raise ValueError(
        f'Mixing needs one positive weight a corpus; got {len(self.corpora)} corpora, weights {weights}.'
      )
    self.length, self.batch_size, self.seed = length, batch_size, seed
    self._cumulative = np.cumsum(weights) / np.sum(weights)
    sizes = [np.diff(corpus.borders) for corpus in self.corpora]
    self._num_places = [np.cumsum(np.where(n > 0, np.maximum(n - length, 0) + 1, 0)) for n in sizes]

  def batch(self, step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng((self.seed, 2, step))
    chosen = np.searchsorted(self._cumulative[:-1], random.random(self.batch_size), side='right')
    place = random.random(self.batch_size)
    batch = {
      'bytes': np.zeros((self.batch_size, self.length), np.uint8),
      'valid': np.zeros((self.batch_size, self.length), bool),
    }
    for number, (corpus, num_places) in enumerate(zip(self.corpora, self._num_places, strict=True)):
      rows = np.flatnonzero(chosen == number)
      offset = (place[rows] * num_places[-1]).astype(np.int64)
      document = np.searchsorted(num_places, offset, side='right')
      start = corpus.borders[document] + offset - np.where(document > 0, num_places[document - 1], 0)
      for key, value in corpus.read(start, corpus.borders[document + 1], self.length).items():
        batch[key][rows] = value
    return batch if len(self.corpora) == 1 else batch | {'corpus': chosen.astype(np.int32)}

  def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """The stream from a step on, as `perceiver_lib.training.fit.fit` asks for it."""
    return map(self.batch, itertools.count(start_step))
