"""The search for the number of latents: where it stops, what it takes, and what it refuses."""

from __future__ import annotations

import pytest

from perceiver_lib.training.latent_search import search_num_latents


def searched(scores, **settings):
  """A search over given scores; trying a number that is not among them fails the test."""
  return search_num_latents(scores.__getitem__, **settings)


def test_it_stops_after_two_doublings_without_gain_and_takes_the_smallest_that_is_enough():
  found = searched({1: 50.0, 2: 70.0, 4: 90.0, 8: 90.5, 16: 90.9}, tolerance=1.0, limit=1_024)
  assert (found.num_latents, found.stopped_early) == (4, True)
  assert list(found.scores) == [1, 2, 4, 8, 16]


def test_one_unlucky_training_does_not_end_it():
  scores = {1: 50.0, 2: 49.0, 4: 80.0, 8: 90.0, 16: 90.2, 32: 90.1}
  assert searched(scores, tolerance=1.0, limit=64).num_latents == 8
  assert searched({1: 50.0, 2: 49.0}, tolerance=1.0, limit=64, patience=1).num_latents == 1


def test_small_gains_add_up():
  found = searched({1: 10.0, 2: 10.6, 4: 11.2, 8: 11.3, 16: 11.4}, tolerance=1.0, limit=64)
  assert found.num_latents == 2 and found.stopped_early and max(found.scores) == 16


def test_it_ends_at_the_limit_and_says_so():
  found = searched({3: 1.0, 6: 2.0, 12: 3.0}, tolerance=0.5, start=3, limit=20)
  assert (found.num_latents, found.stopped_early) == (12, False)


@pytest.mark.parametrize(
  'settings',
  [
    {'tolerance': 0.0, 'limit': 8},
    {'tolerance': 1.0, 'limit': 8, 'start': 0},
    {'tolerance': 1.0, 'limit': 1, 'start': 2},
    {'tolerance': 1.0, 'limit': 8, 'patience': 0},
  ],
)
def test_settings_that_mean_nothing_are_refused(settings):
  with pytest.raises(ValueError, match='A search needs a tolerance above 0'):
    searched({}, **settings)


def test_a_training_that_diverged_is_no_score():
  with pytest.raises(ValueError, match='with 2 latents is nan'):
    searched({1: 1.0, 2: float('nan')}, tolerance=1.0, limit=8)
