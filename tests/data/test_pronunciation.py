"""Words, phonemes and their splits; and the tables that a model must beat."""

import numpy as np
import pytest

from perceiver_lib.baselines.pronunciation import phoneme_entropy, pronunciation_tables
from perceiver_lib.data import pronunciation as words
from perceiver_lib.scores.sequences import error_rates

SPLITS = ('train', 'validation', 'test')


@pytest.fixture(scope='module')
def data():
  return words.load()


def test_words_are_complete_and_apart_by_their_first_five_letters(data):
  groups = {split: {word[:5] for word in getattr(data, split).words} for split in SPLITS}
  assert not groups['train'] & (groups['validation'] | groups['test']) and not groups['validation'] & groups['test']
  distinct = [len(set(getattr(data, split).words)) for split in SPLITS]
  assert distinct == [109_832, 3_484, 3_581] and sum(distinct) == len(words.read())
  assert list(data.provenance.counts.values()) == [*distinct, len(data.train)]
  assert [len(getattr(data, split)) for split in SPLITS[1:]] == distinct[1:]


def test_examples_say_what_the_dictionary_says(data):
  assert words.spell(words.read()['tomato'][0]) == 'T AH M EY T OW'
  assert [words.spell(variant) for variant in words.read()['read']] == ['R EH D', 'R IY D']
  for split in SPLITS:
    source = getattr(data, split)
    for index in (0, len(source) // 2, len(source) - 1):
      example = source[index]
      assert words.spell(example['letters']) == source.words[index]
      said = words.spell(example['phonemes'])
      assert said in [words.spell(variant) for variant in source.variants[index]]
      if split != 'train':
        assert said == words.spell(source.variants[index][0])


def test_every_row_has_one_end_and_ids_of_its_kind(data):
  arrays = data.train.arrays
  assert arrays['letters'].shape[1] == 14 and arrays['phonemes'].shape[1] == 16
  assert ((arrays['phonemes'] == words.END).sum(1) == 1).all()
  letters, phonemes = arrays['letters'], arrays['phonemes']
  assert set(np.unique(letters)) == {words.PAD, *range(words.FIRST_LETTER, words.FIRST_PHONEME)}
  assert set(np.unique(phonemes)) == {words.PAD, words.END, *range(words.FIRST_PHONEME, words.VOCABULARY_SIZE)}
  behind = np.cumsum(phonemes == words.END, 1) - (phonemes == words.END) > 0
  assert (phonemes[behind] == words.PAD).all() and (phonemes[~behind] != words.PAD).all()


def test_spelling_there_and_back():
  ids = words.letter_ids(['a', 'zebra'])
  assert [words.spell(row) for row in ids] == ['a', 'zebra']
  assert ids[0].tolist() == [3] + [0] * 13
  assert words.spell([words.START, 29, 67, words.END, 30]) == 'AA ZH'
  for wrong in ('', 'Zebra', "it's", 'a' * 15):
    with pytest.raises(ValueError, match='1 to 14 letters a to z'):
      words.letter_ids(['good', wrong])
  with pytest.raises(ValueError, match='below 68; got 68'):
    words.spell([68])


def test_words_that_are_too_long_are_left_out_and_some_words_stay_with_their_phonemes(data):
  few = data.train.some(50)
  assert all(words.spell(row['letters']) == word for row, word in zip(few, few.words, strict=True))
  assert all(any(row['phonemes'][: len(said)].tolist() == [*said] for said in variants)
             for row, variants in zip(few, few.variants, strict=True))  # fmt: skip
  lengths = (few.arrays['phonemes'] != words.PAD).sum(1)
  short = words.training_words(few, 7)
  assert len(short) == (lengths <= 7).sum() < len(few) == len(few.words) == len(few.variants)
  assert short.arrays['phonemes'].shape[1] == 7 and ((short.arrays['phonemes'] == words.END).sum(1) == 1).all()


def test_frequencies_alone_leave_their_entropy():
  phonemes = np.array([[words.END, 40], [words.END, 40]], np.int32)
  source = words.WordSource({'letters': words.letter_ids(['a', 'b']), 'phonemes': phonemes}, 'ab', [((40,),)] * 2)
  assert phoneme_entropy(source) == pytest.approx(np.log(2))


def test_tables_are_as_good_as_reported(data):
  said = pronunciation_tables(data.train, data.validation)
  found = {name: error_rates(rows, data.validation.variants) for name, rows in said.items()}
  assert found['letter'].token_error_best == pytest.approx(0.422, abs=0.01)
  assert found['letters in context'].token_error_best == pytest.approx(0.127, abs=0.005)
  assert found['letters in context'].sequence_error_first == pytest.approx(0.558, abs=0.01)


def test_tables_say_known_words_as_they_are():
  """Of consistent spellings, all training words come back, x as two phonemes and a silent e as none."""
  pairs = {'tap': 'T AE P', 'tax': 'T AE K S', 'tape': 'T EY P', 'pat': 'P AE T', 'pate': 'P EY T', 'apt': 'AE P T'}
  rows = np.zeros((len(pairs), words.MAX_PHONEMES + 1), np.int32)
  for row, said in zip(rows, pairs.values(), strict=True):
    ids = [words.FIRST_PHONEME + words.PHONEMES.index(symbol) for symbol in said.split(' ')]
    row[: len(ids) + 1] = [*ids, words.END]
  variants = [(tuple(row[row >= words.FIRST_PHONEME].tolist()),) for row in rows]
  source = words.WordSource({'letters': words.letter_ids(list(pairs)), 'phonemes': rows}, list(pairs), variants)
  found = pronunciation_tables(source, source)
  assert error_rates(found['letters in context'], variants).sequence_error_best == 0
  assert error_rates(found['letter'], variants).sequence_error_best > 0
