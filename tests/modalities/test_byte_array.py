from __future__ import annotations

import numpy as np
import pytest

from perceiver_lib.modalities.byte_array import timed_byte_tokens


def test_timed_bytes_come_equally_many_a_timestep_each_with_its_place():
  tokens = timed_byte_tokens(np.arange(12, dtype=np.uint8).reshape(2, 6), num_timesteps=2)
  assert np.asarray(tokens.time).tolist() == [[0, 0, 0, 1, 1, 1]] * 2
  assert np.asarray(tokens.position)[0, :, 0].tolist() == [-1, 0, 1, -1, 0, 1]
  assert np.asarray(tokens.values)[1].tolist() == list(range(6, 12))
  with pytest.raises(ValueError, match='multiple of as many bytes; got 6'):
    timed_byte_tokens(np.zeros((1, 6), np.uint8), num_timesteps=4)
