"""Measures of maps on cases whose value is known."""

from __future__ import annotations

import numpy as np
import pytest

from perceiver_lib.data.mirrored_copy import copy_batch
from perceiver_lib.scores import attention_maps as measured
from perceiver_lib.training.sequences import examples_of

RANDOM = np.random.default_rng(0)


def test_a_tartan_is_all_stripes_and_noise_has_the_share_that_is_stated():
  rows, columns = RANDOM.standard_normal((4, 9, 1)), RANDOM.standard_normal((4, 1, 7))
  assert measured.stripes_share(rows + columns) == pytest.approx(1)
  noise = RANDOM.standard_normal((20_000, 5, 4))
  assert measured.stripes_share(noise) == pytest.approx((5 + 4 - 2) / (5 * 4 - 1), abs=0.01)


def test_likeness_knows_copies_and_negatives():
  values = RANDOM.standard_normal((3, 50))
  assert measured.likeness(np.stack([values, 2 - 3 * values], axis=1), values) == pytest.approx(1)
  assert measured.likeness(RANDOM.standard_normal((3, 40, 50)), values) < 0.1


def test_the_three_kinds_are_found_where_they_were_put():
  """Four maps over 16 places: one place, every fourth place, the spaces, and flat."""
  text = RANDOM.choice(np.frombuffer(b'ab .', np.uint8), (64, 16))
  is_space = (text == ord(' ')) + 1e-6
  place = np.zeros((64, 16))
  place[:, 5] = 1
  periodic = np.tile((np.arange(16) % 4 == 0) / 4.0, (64, 1))
  maps = np.stack([np.full((64, 16), 1 / 16), periodic, is_space / is_space.sum(1, keepdims=True), place], axis=1)
  chosen = measured.three_kinds(maps[:, None], text)
  assert [one.latent for one in chosen] == [3, 1, 2]
  assert chosen[0].position_share == pytest.approx(1) and chosen[2].position_share < 0.3
  assert chosen[1].num_places == pytest.approx(4, rel=1e-3)
  liked = measured.preferences(maps[:, None], text)
  assert max(liked, key=lambda kind: liked[kind][0, 2]) == 'a space or line break'
  assert all(kind[0, 0] == pytest.approx(1) for kind in liked.values() if kind.any())


def test_word_starts_are_letters_behind_no_letter():
  text = np.frombuffer(b"To be, 'tis", np.uint8)[None]
  assert np.flatnonzero(measured.word_starts(text)[0]).tolist() == [0, 3, 8]


def test_a_perfect_lookup_has_all_mass_and_a_flat_one_what_is_stated():
  length = 16
  inputs = examples_of(copy_batch(length, 2, seed=0)).inputs
  last = np.tile(np.arange(length // 2 - 1, length - 1), (2, 1))
  perfect = np.zeros((2, 1, last.shape[1], length - 1))
  flat = np.zeros_like(perfect)
  for n, t in enumerate(last[0]):
    perfect[:, 0, n, length - 2 - t], flat[:, 0, n, : t + 1] = 1, 1 / (t + 1)
  assert measured.lookup_mass(perfect, last, length) == pytest.approx(1)
  assert measured.lookup_mass(flat, last, length)[0] == pytest.approx(measured.uniform_mass(last, length))
  ids = np.asarray(inputs.values)
  copied = last[0][:-1]  # the last one is followed by the end token
  assert np.array_equal(ids[:, copied + 1], ids[:, length - 2 - copied])


def test_a_profile_averages_over_allowed_pairs_only():
  weights = np.arange(6.0).reshape(1, 1, 2, 3)
  offset, allowed = np.array([[0, 1, 2], [-1, 0, 1]]), np.array([[True, True, False], [True, True, True]])
  offsets, means = measured.profile(weights, offset, allowed)
  assert offsets.tolist() == [-1, 0, 1] and means.tolist() == [[3, 2, 3]]


def test_a_map_on_the_copied_symbol_is_right_and_a_flat_one_has_its_share():
  copied = np.array([[2, -1, 0], [3, 1, 1]])
  readable = np.array([[True, True, True, False], [True] * 4])
  right = np.zeros((2, 3, 4))
  np.put_along_axis(right, np.maximum(copied, 0)[..., None], 5.0, axis=-1)
  right[0, 0, 3] = 99  # padding
  assert measured.on_truth(right, copied, readable) == (100, 100)
  # Only the first and the last output copy in both examples.
  assert measured.on_truth(np.zeros((2, 3, 4)), copied, readable).mass == pytest.approx(100 * (1 / 3 + 1 / 4) / 2)
