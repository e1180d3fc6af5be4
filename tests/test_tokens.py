from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.tokens import SOURCE_TIME, Tokens, may_attend, zero_invalid


def picture(mask) -> list[str]:
  return [''.join('#' if cell else '.' for cell in row) for row in np.asarray(mask)]


def test_the_rule_is_the_picture_of_its_docstring():
  query_time = jnp.array([[0, 1, 1]], jnp.int32)
  key_time = jnp.array([[0, 1, 2, SOURCE_TIME]], jnp.int32)
  drawn = picture(may_attend(query_time, key_time, None)[0])
  assert drawn == ['#..#', '##.#', '##.#']
  in_docstring = [line.split()[2:] for line in may_attend.__doc__.splitlines() if line.strip().startswith('query ')]
  assert [''.join(row) for row in in_docstring] == drawn


def test_validity_and_time_must_both_allow():
  time = jnp.array([[0, 1, 2]], jnp.int32)
  valid = jnp.array([[True, False, True]])
  assert picture(may_attend(time, time, valid)[0]) == ['#..', '#..', '#.#']
  assert picture(may_attend(None, None, valid)[0]) == ['#.#']
  assert may_attend(None, None, None) is None


@pytest.mark.parametrize('query_has_time', [True, False])
def test_a_mixture_of_times_is_refused(query_has_time):
  time = jnp.zeros((1, 3), jnp.int32)
  with pytest.raises(ValueError, match='both carry time'):
    may_attend(time if query_has_time else None, None if query_has_time else time, None)


def test_zeroing_keeps_nan_out():
  values = jnp.array([[[1.0, 2.0], [jnp.nan, jnp.inf]]])
  np.testing.assert_array_equal(zero_invalid(values, jnp.array([[True, False]])), [[[1, 2], [0, 0]]])
  assert zero_invalid(values, None) is values


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'position': np.zeros((2, 3), np.float32)}, r'tokens.position must be \[2 or 1, 3, axes\]; got shape \(2, 3\)'),
    ({'position': np.zeros((2, 4, 1), np.float32)}, r'got shape \(2, 4, 1\)'),
    ({'time': np.zeros((2, 5), np.int32)}, r'tokens.time must be \[2, 3\].*\(2, 5\)'),
    ({'valid': np.ones((1, 3), bool)}, r'tokens.valid must be \[2, 3\].*\(1, 3\)'),
    ({'time': np.zeros((2, 3), np.float32)}, 'must be integer; got float32'),
    ({'valid': np.ones((2, 3), np.int32)}, 'must be bool; got int32'),
  ],
)
def test_wrong_fields_are_named(change, sentence):
  tokens = Tokens(values=jnp.zeros((2, 3), jnp.uint8))
  for field, array in change.items():
    object.__setattr__(tokens, field, jnp.asarray(array))  # around the shape checks that only tests have
  with pytest.raises(ValueError, match=sentence):
    tokens.checked()
