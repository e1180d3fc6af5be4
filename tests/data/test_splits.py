"""Splits divide every class alike, cover all rows once, and refuse what they can't do."""

import numpy as np
import pytest

from perceiver_lib.data.splits import carve, stratified_split


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
