from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.parameters import Frozen, abstract, count, filled, frozen


class Normed(nnx.Module):
  """Parameters that start at one and at zero, and running statistics, which are none."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.linear = nnx.Linear(width, 5, rngs=rngs)
    self.norm = nnx.BatchNorm(5, rngs=rngs)


def test_abstract_modules_are_made_ones_without_numbers():
  made, shapes = Normed(7, rngs=nnx.Rngs(0)), abstract(Normed, 7)
  assert count(made) == count(shapes) == 7 * 5 + 5 + 5 + 5
  assert jax.tree.map(np.shape, nnx.state(made)) == jax.tree.map(np.shape, nnx.state(shapes))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(shapes)))


@pytest.mark.parametrize('seed', [0, 3])
def test_every_parameter_moves_by_the_same_numbers_whether_made_or_abstract(seed):
  made = Normed(7, rngs=nnx.Rngs(0))
  before = jax.tree.map(jnp.array, nnx.state(made))
  moved, shapes = filled(made, scale=0.3, seed=seed), filled(abstract(Normed, 7), scale=0.3, seed=seed)
  jax.tree.map(np.testing.assert_array_equal, nnx.state(made), before)
  added = jax.tree.map(lambda new, old: new - old, nnx.state(moved, nnx.Param), nnx.state(made, nnx.Param))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), added, nnx.state(shapes, nnx.Param))
  numbers = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(added)])
  assert (numbers != 0).all() and 0.2 < numbers.std() < 0.4
  other = filled(abstract(Normed, 7), scale=0.3, seed=seed + 1)
  assert not np.array_equal(other.linear.kernel[...], shapes.linear.kernel[...])
  np.testing.assert_array_equal(moved.norm.var[...], 1)
  np.testing.assert_array_equal(shapes.norm.var[...], 0)


def test_what_is_frozen_is_no_parameter_and_keeps_its_numbers():
  made = filled(Normed(7, rngs=nnx.Rngs(0)), scale=0.3)
  kept = frozen(made, 'linear', 'norm.bias')
  assert count(kept) == 5 and count(made) == 7 * 5 + 15
  assert isinstance(kept.linear.kernel, Frozen) and isinstance(kept.norm.scale, nnx.Param)
  jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(kept)), nnx.to_pure_dict(nnx.state(made)))
  with pytest.raises(ValueError, match=r"no parameter at or below 'norm\.b'"):
    frozen(made, 'linear', 'norm.b')
