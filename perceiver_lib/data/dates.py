"""Dates in eight spellings and in ISO 8601: what each output copies is known, and it does not lie on a diagonal.

Every day from 1930 to 2029 is written in every spelling, so that a year of two digits names one year. The spellings
have their fields in four orders; a digit's place says little, what stands around it says which field it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from perceiver_lib.data.base import DataSet, Provenance, sha256
from perceiver_lib.data.loading import ArraySource
from perceiver_lib.data.splits import by_hash

PAD, START = range(2)
MAX_CHARACTERS = 20
"""Of a spelling: `30th of September 84` is the longest."""
NUM_OUTPUTS = 10
"""Characters of `1984-09-03`."""
TEST_SHARE = VALIDATION_SHARE = 0.05
SPELLINGS = (
  '{d} {Sept} {y}',
  '{Sep} {dd} {yy}',
  '{dd}/{mm}/{y}',
  '{d}.{m}.{yy}',
  '{September} {d}{rd}, {y}',
  '{d}{rd} of {September} {yy}',
  '{y}, {Sept} {d}',
  '{y} {d} {September}',
)
"""Fields by what they write of 3 September 1984: y 1984, yy 84, m 9, mm 09, Sep, Sept, September, d 3, dd 03, rd."""

_MONTHS = ['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August']
_MONTHS += ['September', 'October', 'November', 'December']
_CHARACTERS = ' ,./-0123456789' + ''.join(sorted({c for word in _MONTHS for c in word} | set('stndrhof')))
VOCABULARY_SIZE = 2 + len(_CHARACTERS)
# The ISO places of a field, for those fields that are digits.
_PLACES = {'y': (0, 1, 2, 3), 'yy': (2, 3), 'm': (5, 6), 'mm': (5, 6), 'd': (8, 9), 'dd': (8, 9)}


def load() -> DataSet:
  """90 / 5 / 5 % of 36,525 days, each in all eight spellings; a day is in one split.

  Each example: 'source' int32 `[20]`, the spelling, padded on the right; 'target' int32 `[10]`, the ISO date; 'copied'
  int32 `[10]`, the place in the source of the one character that an output copies, -1 where there is none (hyphens,
  zeros that are not written, the century of a short year, months in words); 'spelling', its number in `SPELLINGS`.
  Examples are shuffled, so that the first ones of a split have all spellings.
  """
  days = np.arange('1930-01-01', '2030-01-01', dtype='datetime64[D]')
  splits = np.array([by_hash(str(day), test=TEST_SHARE, validation=VALIDATION_SHARE) for day in days])
  sources = {split: _shuffled(days[splits == split]) for split in ('train', 'validation', 'test')}
  return DataSet(
    **sources,
    provenance=Provenance(
      name='dates',
      kind='synthetic',
      source=f'the days of 1930 to 2029 in {len(SPELLINGS)} spellings, made by this library',
      licence='none: facts of the calendar',
      counts={f'{split} spelled dates': len(source) for split, source in sources.items()},
      checksum=sha256(source.arrays[name] for source in sources.values() for name in ('source', 'target')),
      note='all spellings of a day are in one split',
    ),
  )


def spelled(days: Sequence | np.ndarray, spelling: int) -> dict[str, np.ndarray]:
  """Arrays of these days (datetime64[D], 1930 to 2029) in one spelling, as `load` describes them."""
  days = np.asarray(days, 'datetime64[D]')
  fields, length = _fields(days), np.zeros(len(days), np.int32)
  text, copied = np.full(len(days), ''), np.full((len(days), NUM_OUTPUTS), -1, np.int32)
  for piece in SPELLINGS[spelling].replace('{', '}').split('}'):
    written = fields.get(piece, np.full(len(days), piece))
    text, length = np.char.add(text, written), length + np.char.str_len(written).astype(np.int32)
    # Digits copy from the right: a short day or month has no character for its zero.
    for from_right, place in enumerate(reversed(_PLACES.get(piece, ())), 1):
      copied[:, place] = np.where(np.char.str_len(written) >= from_right, length - from_right, -1)
  return {
    'source': ids(text, MAX_CHARACTERS),
    'target': ids(np.datetime_as_string(days), NUM_OUTPUTS),
    'copied': copied,
    'spelling': np.full(len(days), spelling, np.int32),
  }


def ids(texts: Sequence[str] | np.ndarray, length: int) -> Int32[np.ndarray, 'n l']:
  """Ids of the characters, padded on the right.

  Raises:
    ValueError: for a text that is too long, or has a character that no date has.
  """
  texts = np.asarray(texts)
  if (longest := int(np.char.str_len(texts).max())) > length:
    raise ValueError(f'Texts must have at most {length} characters; the longest has {longest}.')
  # NumPy strings are UTF-32, and pad with zeros.
  codes = texts.astype(f'U{length}').view(np.uint32).reshape(len(texts), length)
  table = np.full(128, -1, np.int32)
  table[[0, *map(ord, _CHARACTERS)]] = [PAD, *range(2, VOCABULARY_SIZE)]
  found = table[np.minimum(codes, 127)]
  if (found < 0).any():
    raise ValueError(f'Dates are written with {_CHARACTERS!r}; got {chr(codes[found < 0][0])!r}.')
  return found


def spell(row: Int[np.ndarray, 'm']) -> str:
  """The characters of ids; PAD and START say nothing."""
  return ''.join(_CHARACTERS[number - 2] for number in np.asarray(row).tolist() if number >= 2)


def _shuffled(days: np.ndarray) -> ArraySource:
  parts = [spelled(days, number) for number in range(len(SPELLINGS))]
  order = np.random.RandomState(0).permutation(len(days) * len(parts))
  return ArraySource({name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]})


def _fields(days: np.ndarray) -> dict[str, np.ndarray]:
  months = days.astype('datetime64[M]')
  year, month = 1970 + days.astype('datetime64[Y]').astype(int), months.astype(int) % 12
  day = 1 + (days - months).astype(int)
  plain, two_digits = (np.array([form.format(number) for number in range(100)]) for form in ('{}', '{:02}'))
  names = np.array(_MONTHS)
  suffixes = np.array(['th', 'st', 'nd', 'rd', *['th'] * 17, 'st', 'nd', 'rd', *['th'] * 7, 'st'])
  return {
    'y': year.astype('U4'),
    'yy': two_digits[year % 100],
    'm': plain[month + 1],
    'mm': two_digits[month + 1],
    'Sep': names.astype('U3')[month],
    'Sept': np.where(names == 'September', 'Sept', names.astype('U3'))[month],
    'September': names[month],
    'd': plain[day],
    'dd': two_digits[day],
    'rd': suffixes[day],
  }
