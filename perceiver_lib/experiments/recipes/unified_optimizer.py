"""The optimizer of notebook 08's short trainings: it learns more from each batch than Adam alone."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array
from optax import contrib


def kernel_muon(num_steps: int, *, learning_rate: float, kernel_learning_rate: float) -> optax.GradientTransformation:
  """Muon (Jordan 2024; optax) for the kernels of layers, Adam for all else; warm-up over a twentieth, then linear to 0.

  Muon's step has the same size in all directions of a matrix. Tables of embeddings, positions, latents and queries, and
  the final projection, are no maps between channels: Adam trains them, with the biases and scales.
  """
  warmup = max(1, num_steps // 20)

  def schedule(peak: float) -> optax.Schedule:
    down = optax.linear_schedule(peak, 0.0, num_steps - warmup + 1)
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), down], [warmup])

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    contrib.muon(
      schedule(kernel_learning_rate),
      adam_learning_rate=schedule(learning_rate),
      adam_b2=0.98,
      muon_weight_dimension_numbers=_kernels,
    ),
  )


def _kernels(params: Any) -> Any:
  def dimensions(path: tuple, leaf: Array) -> contrib.MuonDimensionNumbers | None:
    names = [str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path]
    final = 'head' in names or ('output' in names and 'attention' not in names)
    return contrib.MuonDimensionNumbers() if leaf.ndim == 2 and 'kernel' in names and not final else None

  return jax.tree_util.tree_map_with_path(dimensions, params)
