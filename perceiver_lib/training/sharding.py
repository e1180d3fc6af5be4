"""Where arrays live on a mesh of devices: batches split over all of them, large parameters over the axis 'model'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

MIN_SHARDED_SIZE = 2**14
"""Arrays with fewer elements are cheaper to hold everywhere than to gather."""


def state_sharding(mesh: jax.sharding.Mesh, shape: Sequence[int]) -> jax.sharding.NamedSharding:
  """Large arrays are split over the mesh axis 'model' along their longest axis that divides evenly."""
  parts = mesh.shape.get('model', 1)
  divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
  names = [None] * len(shape)
  if parts > 1 and divisible and np.prod(shape) >= MIN_SHARDED_SIZE:
    names[max(divisible, key=lambda axis: shape[axis])] = 'model'
  return jax.sharding.NamedSharding(mesh, jax.P(*names))


def batch_placer(mesh: jax.sharding.Mesh, num_examples: int) -> Callable[[Mapping[str, Any]], dict[str, jax.Array]]:
  """A function that splits batches of `num_examples` a process over all axes of the mesh.

  Raises:
    ValueError: if axes are not Auto, or the examples of all processes do not divide evenly over the devices.
  """
  if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
    raise ValueError(
      "mesh axes must be Auto: jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))."
    )
  if (num_examples * jax.process_count()) % mesh.size:
    raise ValueError(
      f'A batch of {num_examples * jax.process_count()} examples cannot be split evenly over {mesh.size} devices; '
      'take a multiple of the number of devices.'
    )
  split = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
  whole = jax.sharding.NamedSharding(mesh, jax.P())

  def place(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {
      name: jax.make_array_from_process_local_data(
        split if np.shape(value)[:1] == (num_examples,) else whole, np.asarray(value)
      )
      for name, value in batch.items()
    }

  return place
