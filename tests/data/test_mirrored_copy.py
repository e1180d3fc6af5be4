"""The mirrored copy task: every byte comes twice, and its positions say where the other one is."""

from __future__ import annotations

import numpy as np
import pytest

from perceiver_lib.data.mirrored_copy import copy_batch, copy_batches
from perceiver_lib.modalities.text import BOS, EOS, NUM_SPECIAL


def test_a_sequence_is_its_own_mirror_image_and_positions_of_a_byte_and_its_copy_sum_to_zero():
  batch = copy_batch(22, 3, seed=0)
  ids, position = batch['ids'], batch['position'][:, :, 0]
  assert (ids[:, 0] == BOS).all() and (ids[:, -1] == EOS).all() and ids[:, 1:-1].min() >= NUM_SPECIAL
  np.testing.assert_array_equal(ids[:, 1:11], ids[:, 11:21][:, ::-1])
  for target in range(11, 21):
    source = 21 - target
    assert (ids[:, target] == ids[:, source]).all()
    assert (position[:, target - 1] == -position[:, source]).all()
  np.testing.assert_array_equal(ids, copy_batch(22, 3, seed=0)['ids'])
  assert (ids != copy_batch(22, 3, seed=0, step=1)['ids']).any()


def test_only_the_second_half_is_scored():
  np.testing.assert_array_equal(copy_batch(22, 3, seed=0)['scored'], np.tile(np.arange(22) >= 11, (3, 1)))


def test_batches_go_on_from_any_step_and_carry_what_they_are_given():
  batches = copy_batches(22, 3, seed=4, window=7)
  first, second = (batch for _, batch in zip(range(2), batches(5), strict=False))
  np.testing.assert_array_equal(first['ids'], copy_batch(22, 3, seed=4, step=5)['ids'])
  np.testing.assert_array_equal(second['ids'], next(batches(6))['ids'])
  np.testing.assert_array_equal(first['window'], np.full((3, 1), 7))


@pytest.mark.parametrize('length', [2, 7])
def test_a_length_without_a_byte_or_a_middle_is_refused(length):
  with pytest.raises(ValueError, match=f'got length {length}'):
    copy_batch(length, 1, seed=0)
