"""Text as UTF-8 bytes: the tokenizer of the released byte models, and the masks of masked language modelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from perceiver_lib.settings import check_numbers

PAD, BOS, EOS, MASK, CLS, SEP = range(6)
NUM_SPECIAL = 6
VOCAB_SIZE = 256 + NUM_SPECIAL

_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[[ord(character) for character in ' \t\n\r\v\f']] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTokenizer:
  """Bytes to ids and back: id = byte + 6, below that PAD 0, BOS 1, EOS 2, MASK 3, CLS 4, SEP 5.

  Source: deepmind-research, `perceiver/bytes_tokenizer.py`, which adds no special token. Hugging Face's
  `PerceiverTokenizer` puts one [CLS] before and one [SEP] after a text; the weights are the same.

  Attributes:
    add_special_tokens: put [CLS] and [SEP] around a text, as Hugging Face does.
  """

  add_special_tokens: bool = False

  def encode(self, text: str | bytes) -> Int32[np.ndarray, 'm']:
    data = text.encode('utf-8') if isinstance(text, str) else text
    ids = self.ids(np.frombuffer(data, np.uint8))
    return np.concatenate([[CLS], ids, [SEP]]).astype(np.int32) if self.add_special_tokens else ids

  def decode(self, ids: Int[np.ndarray, 'm'] | Sequence[int]) -> str:
    """Text of the bytes among the ids; special tokens say nothing, invalid UTF-8 becomes U+FFFD.

    Raises:
      ValueError: for ids outside the vocabulary.
    """
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 1 or (ids.size and not 0 <= ids.min() <= ids.max() < VOCAB_SIZE):
      raise ValueError(f'decode needs one row of ids in [0, {VOCAB_SIZE}); got shape {ids.shape} and ids {ids[:8]} ...')
    return (ids[ids >= NUM_SPECIAL] - NUM_SPECIAL).astype(np.uint8).tobytes().decode('utf-8', errors='replace')

  @staticmethod
  def ids(
    data: UInt8[np.ndarray, '*shape'], valid: Bool[np.ndarray, '*shape'] | None = None
  ) -> Int32[np.ndarray, '*shape']:
    """Ids of an array of raw bytes, PAD where not valid."""
    ids = data.astype(np.int32) + NUM_SPECIAL
    return ids if valid is None else np.where(valid, ids, np.int32(PAD))

  def batch(
    self, texts: Sequence[str | bytes], length: int | None = None
  ) -> tuple[Int32[np.ndarray, 'b m'], Bool[np.ndarray, 'b m']]:
    """Ids of several texts, padded on the right to `length` (by default to the longest), and which are no padding.

    Raises:
      ValueError: for no text, a text without a byte, or one that is longer than `length`.
    """
    if isinstance(texts, str | bytes) or not len(texts):
      raise ValueError(f'batch needs a list of one or more texts; got {texts!r}.')
    rows = [self.encode(text) for text in texts]
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
      if not len(text):
        raise ValueError(f'Every text needs at least one byte; text {number} of {len(texts)} is empty.')
      if length is not None and len(row) > length:
        raise ValueError(
          f'Text {number} has {len(row)} tokens, but the length is {length}: crop it or raise the length.'
        )
    length = max(map(len, rows)) if length is None else length
    ids = np.full((len(rows), length), PAD, np.int32)
    for padded, row in zip(ids, rows, strict=True):
      padded[: len(row)] = row
    return ids, ids != PAD


class MaskedText(NamedTuple):
  """Attributes: `ids` with MASK at the hidden places, `labels` = the true ids, `label_mask` = where to predict them."""

  ids: Int32[np.ndarray, 'b m']
  labels: Int32[np.ndarray, 'b m']
  label_mask: Bool[np.ndarray, 'b m']


def word_numbers(ids: Int[np.ndarray, 'b m']) -> tuple[Int[np.ndarray, 'b m'], int]:
  """Numbers the whitespace-separated words of a batch: [b, m] with -1 outside words, and how many there are.

  Special tokens are in no word. A word cut by the end of its row counts as a word.
  """
  ids = _checked(ids)
  in_word = (ids >= NUM_SPECIAL) & ~_IS_SPACE[np.maximum(ids - NUM_SPECIAL, 0)]
  starts = in_word.copy()
  starts[:, 1:] &= ~in_word[:, :-1]
  number = np.cumsum(starts).reshape(ids.shape) - 1
  return np.where(in_word, number, -1), int(starts.sum())


def mask_words(ids: Int[np.ndarray, 'b m'], random: np.random.Generator, *, rate: float = 0.15) -> MaskedText:
  """Hides whole words: each whitespace-separated word is chosen independently, and all of its bytes become MASK.

  Source: Perceiver IO (2107.14795), masked language modelling, with its rate of 15 %.

  Raises:
    ValueError: for ids that are not [batch, length] in the vocabulary, or a rate outside (0, 1).
  """
  _check_rate(rate)
  number, num_words = word_numbers(ids)
  # One more entry, never chosen, is what -1 looks up.
  chosen = np.append(random.random(num_words) < rate, False)
  return _hide(ids, chosen[number])


def mask_spans(
  ids: Int[np.ndarray, 'b m'], random: np.random.Generator, *, rate: float = 0.15, mean_length: float = 6.0
) -> MaskedText:
  """Hides spans of bytes that start anywhere, with geometric lengths; spans may touch, overlap and hold whitespace.

  Starts are drawn at each byte with the probability at which a share `rate` of all bytes is hidden (but for the first
  few of a row, which fewer spans reach). Special tokens stay.

  Raises:
    ValueError: as `mask_words`, or for a mean length below 1.
  """
  _check_rate(rate)
  check_numbers({'mean_length': mean_length}, least=1)
  ids = _checked(ids)
  b, m = ids.shape
  # A byte is hidden unless no span that starts k bytes before it is longer than k: 1 - exp(-start_rate * mean_length)
  # if the starts were a Poisson process, which is what the rounding below makes of them.
  num_starts = random.poisson(-np.log1p(-rate) / mean_length, (b, m))
  row, start = np.nonzero(num_starts)
  # The longest of n geometric lengths, by the inverse of its distribution function.
  quantile = random.random(len(row)) ** (1 / num_starts[row, start])
  tail = 1 - 1 / mean_length
  length = np.ones(len(row)) if tail == 0 else np.maximum(np.ceil(np.log1p(-quantile) / np.log(tail)), 1)
  stop = np.minimum(start + np.minimum(length, m).astype(np.int64), m)
  depth = np.zeros((b, m + 1), np.int64)
  np.add.at(depth, (row, start), 1)
  np.add.at(depth, (row, stop), -1)
  return _hide(ids, (np.cumsum(depth, 1)[:, :m] > 0) & (ids >= NUM_SPECIAL))


def hidden_words(
  batch: Mapping[str, np.ndarray],
  random: np.random.Generator,
  *,
  rate: float,
  num_queries: int,
  every: int | None = None,
) -> dict[str, np.ndarray]:
  """Hides whole words of raw bytes, and lists the hidden places: only those are asked for.

  Args:
    batch: 'bytes' uint8 and 'valid' bool [b, m], as `data.text` reads them.
    rate: share of the words, each chosen on its own.
    num_queries: places that are listed.
    every: hide besides one word in so many, counted from a random one.

  Returns:
    'ids' [b, m] with MASK, 'valid' [b, m], and for every query [b, o] its 'places', 'labels' and 'label_valid'. Where
    more than `num_queries` bytes of a row are hidden, some of them, drawn at random, are asked for.
  """
  ids, labels, hidden = mask_words(ByteTokenizer.ids(batch['bytes'], batch['valid']), random, rate=rate)
  if every is not None:
    number = word_numbers(labels)[0]
    hidden = hidden | ((number >= 0) & (number % every == random.integers(every, size=(len(labels), 1))))
    ids = np.where(hidden, np.int32(MASK), labels)
  order = np.argsort(np.where(hidden, random.random(ids.shape), 2.0), axis=1)
  places = order[:, :num_queries].astype(np.int32)
  return {
    'ids': ids,
    'valid': np.asarray(batch['valid']),
    'places': places,
    'labels': np.take_along_axis(labels, places, axis=1),
    'label_valid': np.take_along_axis(hidden, places, axis=1),
  }


def _hide(ids: np.ndarray, hidden: np.ndarray) -> MaskedText:
  return MaskedText(np.where(hidden, MASK, ids).astype(np.int32), ids.astype(np.int32), hidden)


def _checked(ids: np.ndarray) -> np.ndarray:
  ids = np.asarray(ids)
  if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f'Masking needs integer ids [batch, length]; got {ids.dtype} of shape {ids.shape}.')
  if ids.size and not 0 <= ids.min() <= ids.max() < VOCAB_SIZE:
    raise ValueError(f'Masking needs ids in [0, {VOCAB_SIZE}); got ids from {ids.min()} to {ids.max()}.')
  if ids.dtype == np.uint8:
    raise ValueError('Masking needs ids, but uint8 looks like raw bytes: turn them into ids with ByteTokenizer.ids.')
  return ids


def _check_rate(rate: float) -> None:
  if not 0 < rate < 1:
    raise ValueError(f'The masking rate must lie between 0 and 1; got {rate}.')
