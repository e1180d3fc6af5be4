"""Splits divide every class alike, cover all rows once, and refuse what they can't do."""

import numpy as np
import pytest

from perceiver_lib.data.splits import by_hash, carve, filled_by_hash, stratified_split


def test_stratified_split_divides_every_class():
  labels = np.repeat([3, 5, 7], [10, 20, 30])
  split = stratified_split(labels, {'a': 0.7, 'b': 0.3}, seed=1)
  assert np.bincount(labels[split['a']])[[3, 5, 7]].tolist() == [7, 14, 21]
  assert sorted([*split['a'], *split['b']]) == list(range(60))
  other = stratified_split(labels, {'a': 0.7, 'b': 0.3}, seed=2)
  assert not np.array_equal(split['a'], other['a'])


def test_refusals():
  with pytest.raises(ValueError, match='sum to 1'):
    stratified_split(np.zeros(10, int), {'a': 0.7, 'b': 0.7}, seed=0)
  with pytest.raises(ValueError, match="'b' would be empty"):
    stratified_split(np.arange(10), {'a': 0.9, 'b': 0.1}, seed=0)


def test_carve_takes_random_rows_out():
  rest, carved = carve(101, 11, seed=3)
  assert len(carved) == 11 and sorted([*rest, *carved]) == list(range(101))
  assert not np.array_equal(carved, carve(101, 11, seed=4)[1])
  assert np.ptp(carved) > 30  # not a slice


def test_a_key_has_its_split_whatever_else_there_is():
  found = [by_hash(f'key {i}', test=0.1, validation=0.2) for i in range(2000)]
  assert np.mean([split == 'test' for split in found]) == pytest.approx(0.1, abs=0.02)
  assert np.mean([split == 'validation' for split in found]) == pytest.approx(0.2, abs=0.03)
  # SHA-256 of 'a', 'b' and 'abc' begin with ca, 3e and ba, so with 0.79, 0.24 and 0.73 of the way.
  assert [by_hash(key, test=0.25, validation=0.5) for key in ('a', 'b', 'abc')] == ['train', 'test', 'validation']


def test_groups_fill_the_held_out_splits_to_their_share():
  sizes = {f'group {i}': 1 + i % 3 for i in range(300)}
  splits = filled_by_hash(sizes, test=0.1, validation=0.2)
  assert splits.keys() == sizes.keys()
  held = {name: sum(sizes[key] for key, split in splits.items() if split == name) for name in ('test', 'validation')}
  assert 60 <= held['test'] < 63 and 180 <= held['test'] + held['validation'] < 183
  assert filled_by_hash(dict(reversed(sizes.items())), test=0.1, validation=0.2) == splits
