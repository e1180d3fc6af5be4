"""Edit distances are those of the textbook; error rates take the variant that they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_lib.scores.sequences import edit_distances, error_rates, until


def textbook(a, b):
  if not a or not b:
    return len(a) + len(b)
  return min(textbook(a[1:], b) + 1, textbook(a, b[1:]) + 1, textbook(a[1:], b[1:]) + (a[0] != b[0]))


def test_known_distances():
  pairs = [('kitten', 'sitting', 3), ('', 'abc', 3), ('abc', '', 3), ('', '', 0), ('flaw', 'lawn', 2), ('ab', 'ab', 0)]
  found = edit_distances([list(map(ord, a)) for a, _, _ in pairs], [list(map(ord, b)) for _, b, _ in pairs])
  assert found.tolist() == [distance for _, _, distance in pairs]


SEQUENCE = st.lists(st.integers(0, 2), max_size=5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SEQUENCE, SEQUENCE), min_size=1, max_size=7))
def test_distances_of_a_batch_are_those_of_single_pairs(pairs):
  found = edit_distances([a for a, _ in pairs], [b for _, b in pairs])
  assert found.tolist() == [textbook(a, b) for a, b in pairs]


def test_error_rates_against_best_and_first_variant():
  predicted = [[1, 2, 3], [4], []]
  variants = [([1, 3, 3, 3], [1, 2, 3]), ([4],), ([5, 6],)]
  rates = error_rates(predicted, variants)
  assert rates.token_error_best == pytest.approx(2 / 6)
  assert rates.sequence_error_best == pytest.approx(1 / 3)
  assert rates.token_error_first == pytest.approx(4 / 7)
  assert rates.sequence_error_first == pytest.approx(2 / 3)


def test_rows_are_cut_at_the_first_end():
  rows = until(np.array([[5, 2, 6, 2], [2, 5, 6, 7], [5, 6, 7, 8]]), 2)
  assert [row.tolist() for row in rows] == [[5], [], [5, 6, 7, 8]]


def test_missing_answers_are_refused():
  with pytest.raises(ValueError, match='2 predictions and 1 truths'):
    edit_distances([[1], [2]], [[1]])
  with pytest.raises(ValueError, match='one or more right answers'):
    error_rates([[1]], [[]])
