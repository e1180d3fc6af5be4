"""What a byte model must beat: tables and compressors, given the same training text and no more than the model sees."""

from __future__ import annotations

import bz2
import collections
import dataclasses
import gzip
import itertools
import lzma
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, UInt8

_SPACES = b' \t\n\r\v\f'
_MAX_LENGTH = 24
"""Longer words share the tables of this length."""


class Score(NamedTuple):
  """On hidden bytes. `accuracy` is the share of bytes whose most likely value is right; `bits_per_byte` code length."""

  accuracy: float
  bits_per_byte: float


@dataclasses.dataclass(frozen=True)
class _HiddenWords:
  """The hidden words of a batch of windows: place, length, and the words before and after (None if hidden or none)."""

  row: Int64[np.ndarray, 'w']
  start: Int64[np.ndarray, 'w']
  length: Int64[np.ndarray, 'w']
  before: list[bytes | None]
  after: list[bytes | None]


def masked_baselines(
  train: bytes, windows: UInt8[np.ndarray, 'b m'], hidden: Bool[np.ndarray, 'b m'], valid: Bool[np.ndarray, 'b m']
) -> dict[str, Score]:
  """Scores of three predictors of whole hidden words, which see nothing but the bytes that are not hidden.

  unigram: how often each byte occurs inside words. word position: the same among words of the hidden word's length, at
  the same place of the word. word bigram: the bytes that words of this length have after the word before, and before
  the word after, backed off to word position with the weight of Witten and Bell (1991); hidden neighbours don't help.

  Args:
    train: the training text.
    windows: raw bytes, padded.
    hidden: the bytes to predict; whole words, as `perceiver_lib.modalities.text.mask_words` hides them.
    valid: False on padding.

  Raises:
    ValueError: if shapes differ, nothing is hidden, or a hidden byte is padding, whitespace or in a word shown in part.
  """
  if not windows.shape == hidden.shape == valid.shape or windows.ndim != 2:
    raise ValueError(
      f'windows, hidden and valid must all be [batch, length]; got {windows.shape}, {hidden.shape}, {valid.shape}.'
    )
  words = _hidden_words(windows, hidden, valid)
  tables = _word_tables(train)
  in_word = np.bincount(np.frombuffer(train.translate(None, _SPACES), np.uint8), minlength=256) + 1.0
  unigram = in_word / in_word.sum()
  position = (tables + 16 * unigram) / (tables.sum(-1, keepdims=True) + 16)

  row, start, length = (np.repeat(array, words.length) for array in (words.row, words.start, words.length))
  first = np.cumsum(words.length) - words.length
  offset = np.arange(len(row)) - np.repeat(first, words.length)
  truth = windows[row, start + offset]
  by_position = position[np.minimum(length, _MAX_LENGTH), np.minimum(offset, _MAX_LENGTH - 1)]
  return {
    'unigram': _score(np.broadcast_to(unigram, (len(truth), 256)), truth),
    'word position': _score(by_position, truth),
    'word bigram': _score(_with_neighbours(by_position, words, train), truth),
  }


def _score(probabilities: Float64[np.ndarray, 'w 256'], truth: UInt8[np.ndarray, 'w']) -> Score:
  right = probabilities.argmax(-1) == truth
  return Score(float(right.mean()), float(-np.log2(probabilities[np.arange(len(truth)), truth]).mean()))


def _hidden_words(windows: np.ndarray, hidden: np.ndarray, valid: np.ndarray) -> _HiddenWords:
  in_word = valid & ~np.isin(windows, np.frombuffer(_SPACES, np.uint8))
  edges = np.diff(np.pad(in_word, ((0, 0), (1, 1))).astype(np.int8))
  row, start = np.nonzero(edges > 0)
  stop = np.nonzero(edges < 0)[1]
  num_before = np.cumsum(np.pad(hidden, ((0, 0), (1, 0))), 1)
  num_hidden = num_before[row, stop] - num_before[row, start]
  is_hidden = num_hidden == stop - start
  if not hidden.any() or num_hidden.sum() != hidden.sum() or (num_hidden[~is_hidden] > 0).any():
    raise ValueError('These baselines need hidden words, and whole ones: no padding, whitespace or parts of words.')

  def shown(word: int, neighbour: int) -> bytes | None:
    if not 0 <= neighbour < len(row) or row[neighbour] != row[word] or is_hidden[neighbour]:
      return None
    return windows[row[word], start[neighbour] : stop[neighbour]].tobytes()

  found = np.flatnonzero(is_hidden)
  return _HiddenWords(
    row[found],
    start[found],
    (stop - start)[found],
    [shown(word, word - 1) for word in found.tolist()],
    [shown(word, word + 1) for word in found.tolist()],
  )


def _word_tables(train: bytes) -> Float64[np.ndarray, 'length place 256']:
  """Counts of the bytes of training words by length and place in the word; all 0 for lengths that do not occur."""
  lengths = np.array([len(word) for word in train.split()], np.int64)
  place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  length, place = np.minimum(np.repeat(lengths, lengths), _MAX_LENGTH), np.minimum(place, _MAX_LENGTH - 1)
  byte = np.frombuffer(train.translate(None, _SPACES), np.uint8)
  shape = (_MAX_LENGTH + 1, _MAX_LENGTH, 256)
  return np.bincount(np.ravel_multi_index((length, place, byte), shape), minlength=np.prod(shape)).reshape(shape) * 1.0


def _with_neighbours(
  back_off: Float64[np.ndarray, 'w 256'], words: _HiddenWords, train: bytes
) -> Float64[np.ndarray, 'w 256']:
  """Adds what followed the word before and what preceded the word after to the counts of the back-off."""
  following = {
    (word, length): collections.Counter() for word, length in zip(words.before, words.length.tolist(), strict=True)
  }
  preceding = {
    (word, length): collections.Counter() for word, length in zip(words.after, words.length.tolist(), strict=True)
  }
  found = train.split()
  for first, second in itertools.pairwise(found):
    if (counter := following.get((first, len(second)))) is not None:
      counter[second] += 1
    if (counter := preceding.get((second, len(first)))) is not None:
      counter[first] += 1

  def byte_counts(counter: collections.Counter, length: int) -> tuple[np.ndarray, int]:
    counts = np.zeros((length, 256))
    letters = np.frombuffer(b''.join(counter), np.uint8).reshape(-1, length)
    weights = np.array(list(counter.values()), np.float64)[:, None]
    np.add.at(counts, (np.arange(length), letters), weights)
    return counts, len(counter)

  side_tables = [
    {key: byte_counts(counter, key[1]) for key, counter in side.items()} for side in (following, preceding)
  ]
  probabilities = np.empty_like(back_off)
  first = 0
  for before, after, length in zip(words.before, words.after, words.length.tolist(), strict=True):
    rows = slice(first, first + length)
    sides = [table[neighbour, length] for table, neighbour in zip(side_tables, (before, after), strict=True)]
    counts = sides[0][0] + sides[1][0]
    num_types = max(sides[0][1] + sides[1][1], 1)
    probabilities[rows] = (counts + num_types * back_off[rows]) / (counts.sum(-1, keepdims=True) + num_types)
    first += length
  return probabilities


def neighbour_tables(
  train: bytes,
  windows: UInt8[np.ndarray, 'b m'],
  hidden: Bool[np.ndarray, 'b m'],
  contexts: Sequence[tuple[int, int]] = ((1, 0), (0, 1), (1, 1), (1, 2), (2, 1), (2, 2)),
) -> dict[tuple[int, int], float]:
  """Shares of hidden bytes that are the most frequent one between the same neighbours in the training text.

  Args:
    hidden: bytes to predict, and no neighbours to anything.
    contexts: (neighbours to the left, to the right), at most seven in all, from the weakest table to the strongest.
      Where a neighbour is hidden or beyond the window, or the neighbourhood was never seen, the table before answers,
      and in the end the most frequent byte.

  Returns:
    context -> share in [0, 1] of right answers, with all tables before it to fall back on.
  """
  text = np.frombuffer(train, np.uint8).astype(np.uint64)
  row, place = np.nonzero(hidden)
  widest = max(map(max, contexts))
  padded = np.pad(windows.astype(np.uint64), ((0, 0), (widest, widest)))
  shown = np.pad(~hidden, ((0, 0), (widest, widest)))
  answer = np.full(len(row), np.bincount(text.astype(np.int64)).argmax(), np.uint64)
  byte, last_byte = np.uint64(8), np.uint64(255)
  shares = {}
  for left, right in contexts:
    middle = slice(left, len(text) - right)
    key, asked = np.zeros(len(text[middle]), np.uint64), np.zeros(len(row), np.uint64)
    known = np.ones(len(row), bool)
    for offset in (*range(-left, 0), *range(1, right + 1)):
      key = key << byte | text[left + offset : len(text) - right + offset]
      asked = asked << byte | padded[row, place + widest + offset]
      known &= shown[row, place + widest + offset]
    entries, counts = np.unique(key << byte | text[middle], return_counts=True)
    entries = entries[np.lexsort((counts, entries >> byte))]  # the most frequent of a neighbourhood stands last
    found = np.maximum(np.searchsorted(entries >> byte, asked, side='right') - 1, 0)
    known &= entries[found] >> byte == asked
    answer = np.where(known, entries[found] & last_byte, answer)
    shares[left, right] = float((answer == windows[row, place]).mean())
  return shares


def byte_baselines(train: bytes, test: bytes, *, max_order: int = 6) -> dict[str, float]:
  """Bits a byte of tables and compressors that may read the training text, and of compressors that may not.

  The tables are frequencies of single bytes, and Kneser-Ney models of orders 2, 3 and `max_order`.
  """
  orders = ngram_bits(train, test, max_order=max_order)
  named = {'unigram': unigram_bits(train, test)}
  named |= {f'{order}-gram (Kneser-Ney)': bits for order, bits in enumerate(orders, 1) if order in (2, 3, max_order)}
  return named | compressor_bits(train, test)


def unigram_bits(train: bytes, test: bytes) -> float:
  """Bits a byte of the frequencies of single bytes in training text, each counted once more than it was seen."""
  counts = np.bincount(np.frombuffer(train, np.uint8), minlength=256) + 1.0
  return float(-np.log2(counts / counts.sum())[np.frombuffer(test, np.uint8)].mean())


def ngram_bits(train: bytes, test: bytes, *, max_order: int = 6) -> list[float]:
  """Bits a byte of interpolated Kneser-Ney models of order 1, 2, ... `max_order` (order 1 sees no context).

  Each predicts a byte of the test text from the `order - 1` bytes before it. Every order but the highest counts in how
  many contexts a byte was seen, not how often (Kneser and Ney, 1995); one discount an order, n1 / (n1 + 2 n2).

  Raises:
    ValueError: if a text is empty, or the order is not 1 to 7 (contexts and byte are packed into 64 bits).
  """
  if not 1 <= max_order <= 7 or not train or not test:
    raise ValueError(
      f'ngram_bits needs texts and an order of 1 to 7; got {len(train)} and {len(test)} bytes, order {max_order}.'
    )
  seen = {order: np.unique(_grams(train, order), return_counts=True) for order in range(1, max_order + 1)}
  asked = {order: _grams(test, order) for order in range(1, max_order + 1)}
  bits = []
  lower = np.full(len(test), 1 / 256)
  for order in range(1, max_order + 1):
    bits.append(float(-np.log2(_interpolated(*seen[order], asked[order], lower)).mean()))
    if order < max_order:
      kinds = np.unique(seen[order + 1][0] & _low_bytes(order), return_counts=True)
      lower = _interpolated(*kinds, asked[order], lower)
  return bits


def _low_bytes(count: int) -> np.int64:
  return np.int64((1 << (8 * count)) - 1)


def _grams(text: bytes, order: int) -> Int64[np.ndarray, 'm']:
  """For each byte, it and the `order - 1` bytes before it as one number; line ends stand before the text."""
  data = np.frombuffer(b'\n' * (order - 1) + text, np.uint8).astype(np.int64)
  grams = np.zeros(len(text), np.int64)
  for place in range(order):
    grams = (grams << 8) | data[place : place + len(text)]
  return grams


def _interpolated(
  grams: Int64[np.ndarray, 'g'],
  counts: Int[np.ndarray, 'g'],
  asked: Int64[np.ndarray, 'm'],
  lower: Float64[np.ndarray, 'm'],
) -> Float64[np.ndarray, 'm']:
  """Absolute discounting of sorted grams, whose freed mass goes to the lower order's probabilities."""
  once, twice = np.sum(counts == 1), np.sum(counts == 2)
  discount = once / (once + 2 * twice) if once and twice else 0.5
  contexts, first = np.unique(grams >> 8, return_index=True)
  totals = np.add.reduceat(counts, first)
  kinds = np.diff(np.append(first, len(grams)))
  place = np.minimum(np.searchsorted(grams, asked), len(grams) - 1)
  count = np.where(grams[place] == asked, counts[place], 0)
  place = np.minimum(np.searchsorted(contexts, asked >> 8), len(contexts) - 1)
  known = contexts[place] == asked >> 8
  total = totals[place]
  mixed = (np.maximum(count - discount, 0) + discount * kinds[place] * lower) / total
  return np.where(known, mixed, lower)


def compressor_bits(train: bytes, test: bytes) -> dict[str, float]:
  """Bits a byte of the test text by gzip, bz2 and xz; the 'primed' ones have read the training text first.

  Primed is (C(train + test) - C(train)) / len(test). bz2 forgets all but its last block of 900 kB, xz is given a
  dictionary that holds everything, and gzip sees 32 kB only, so it is not primed.
  """
  both = train + test
  dictionary = max(1 << 20, 1 << len(both).bit_length())

  def xz(data: bytes) -> bytes:
    return lzma.compress(data, filters=[{'id': lzma.FILTER_LZMA2, 'preset': 9, 'dict_size': dictionary}])

  num_bytes = {
    'gzip': len(gzip.compress(test)),
    'bz2': len(bz2.compress(test)),
    'xz': len(xz(test)),
    'bz2 primed': len(bz2.compress(both)) - len(bz2.compress(train)),
    'xz primed': len(xz(both)) - len(xz(train)),
  }
  return {name: 8 * size / len(test) for name, size in num_bytes.items()}
