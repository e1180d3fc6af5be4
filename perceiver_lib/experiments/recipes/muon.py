"""The optimizer of the short sequence trainings: it learns more from each batch than Adam does."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array
from optax import contrib


def muon_and_adam(num_steps: int, *, learning_rate: float, matrix_learning_rate: float) -> optax.GradientTransformation:
  """Muon (Jordan 2024; optax) for matrices inside layers, Adam for tables, head, biases and scales; to zero linearly.

  Both warm up over a twentieth of the steps. Muon's step has the same size in all directions of a matrix.
  """
  warmup = max(1, num_steps // 20)

  def schedule(peak: float) -> optax.Schedule:
    down = optax.linear_schedule(peak, 0.0, num_steps - warmup + 1)
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), down], [warmup])

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    contrib.muon(
      schedule(matrix_learning_rate),
      adam_learning_rate=schedule(learning_rate),
      adam_b2=0.98,
      muon_weight_dimension_numbers=layer_kernels,
    ),
  )


def layer_kernels(params: Any) -> Any:
  """Which parameters Muon turns: kernels of the layers, neither the byte table nor the head."""

  def dimensions(path: tuple, leaf: Array) -> contrib.MuonDimensionNumbers | None:
    names = {str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path}
    inside = leaf.ndim == 2 and names.isdisjoint({'embedding', 'head'})
    return contrib.MuonDimensionNumbers() if inside else None

  return jax.tree_util.tree_map_with_path(dimensions, params)
