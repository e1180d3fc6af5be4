"""Dates: eight spellings of one day, what each ISO character copies, and days that no other split has."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from perceiver_lib.data import dates


def test_a_day_in_all_spellings_and_the_places_that_its_iso_form_copies():
  rows = [dates.spelled(['1984-09-03'], number) for number in range(len(dates.SPELLINGS))]
  assert [dates.spell(row['source'][0]) for row in rows] == [
    '3 Sept 1984',
    'Sep 03 84',
    '03/09/1984',
    '3.9.84',
    'September 3rd, 1984',
    '3rd of September 84',
    '1984, Sept 3',
    '1984 3 September',
  ]
  assert {dates.spell(row['target'][0]) for row in rows} == {'1984-09-03'}
  assert rows[2]['copied'][0].tolist() == [6, 7, 8, 9, -1, 3, 4, -1, 0, 1]
  assert rows[3]['copied'][0].tolist() == [-1, -1, 4, 5, -1, -1, 2, -1, -1, 0]


def test_every_suffix_and_month_is_written_as_it_is_said():
  days = np.arange('2029-01-01', '2029-02-01', dtype='datetime64[D]')
  said = [dates.spell(row).split(' of ')[0].lstrip('0123456789') for row in dates.spelled(days, 5)['source']]
  assert said == ['th' if 11 <= n <= 13 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th') for n in range(1, 32)]
  months = [datetime.date(1999, month, 1) for month in range(1, 13)]
  assert [dates.spell(row) for row in dates.spelled(months, 7)['source']] == [f'{day:%Y} 1 {day:%B}' for day in months]


def test_splits_share_no_day_and_what_is_copied_is_the_same_character():
  data = dates.load()
  place_values = np.int64(dates.VOCABULARY_SIZE) ** np.arange(dates.NUM_OUTPUTS)
  splits = (data.train, data.validation, data.test)
  days = [set((split.arrays['target'] @ place_values).tolist()) for split in splits]
  assert sum(map(len, days)) == len(set.union(*days)) == 36_525
  assert len(days[0]) == pytest.approx(0.9 * 36_525, rel=0.01)
  arrays = data.test.arrays
  row, place = np.nonzero(arrays['copied'] >= 0)
  assert (arrays['source'][row, arrays['copied'][row, place]] == arrays['target'][row, place]).all()
  assert set(arrays['spelling'][:100]) == set(range(len(dates.SPELLINGS)))


def test_what_is_no_date_is_refused():
  with pytest.raises(ValueError, match='at most 4 characters; the longest has 5'):
    dates.ids(['12345'], 4)
  with pytest.raises(ValueError, match="got 'é'"):
    dates.ids(['é1'], 4)
