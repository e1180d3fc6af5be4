"""What a clone of the expert must be measured against: chance, and rules that anyone would write down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from perceiver_lib.data.skirmish import (
  SIDE,
  Units,
  distances,
  foes,
  legal_orders,
  nearest_foe,
  shoot_or_walk,
)


def random_orders(units: Units, key: Key[Array, '']) -> Int[Array, '*b u']:
  """Any legal order, each as likely as another; for one set of units or a batch of them."""
  legal = legal_orders(units) if units.health.ndim == 1 else jax.vmap(legal_orders)(units)
  return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf))


def first_in_range(units: Units) -> Int[Array, 'u']:
  """Shoots at the first foe in range; walks towards the vertical centre line."""
  right = SIDE / 2 - units.position[:, :1]
  cost = jnp.broadcast_to(jnp.arange(len(right), dtype=jnp.float32)[None], (len(right), len(right)))
  return shoot_or_walk(units, cost, towards=jnp.concatenate([right, jnp.zeros_like(right)], 1))


def closest_to_the_middle(units: Units) -> Int[Array, 'u']:
  """Shoots at the closest foe in range; walks towards the middle of all foes."""
  return shoot_or_walk(units, distances(units)[1], towards=_middle_of_foes(units))


def weakest_to_the_middle(units: Units) -> Int[Array, 'u']:
  """Shoots at the foe in range with the least health; walks towards the middle of all foes."""
  return shoot_or_walk(units, _weakness(units), towards=_middle_of_foes(units))


def weakest_to_the_nearest(units: Units) -> Int[Array, 'u']:
  """Shoots at the foe in range with the least health; walks towards the nearest foe: half of the expert's recipe."""
  return shoot_or_walk(units, _weakness(units), towards=nearest_foe(units))


RULES = {
  'first in range, to the centre line': first_in_range,
  "closest, to the foes' middle": closest_to_the_middle,
  "weakest, to the foes' middle": weakest_to_the_middle,
  'weakest, to the nearest foe': weakest_to_the_nearest,
}
"""By whom they shoot at, and where they walk."""


def _weakness(units: Units) -> Float[Array, 'u u']:
  return units.health[None] + 0.01 * distances(units)[1]


def _middle_of_foes(units: Units) -> Float[Array, 'u 2']:
  against = foes(units).astype(jnp.float32)
  return against @ units.position / jnp.maximum(against.sum(1, keepdims=True), 1) - units.position
