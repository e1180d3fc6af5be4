"""Two recipes over optax: AdamW for small trainings, Muon where minutes must do."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from optax import contrib

from perceiver_lib.settings import check_counts, check_numbers
from perceiver_lib.training.sharding import MIN_SHARDED_SIZE


def decay_mask(params: Any) -> Any:
  """True where weight decay applies: everything but biases and norm scales.

  Position tables and latents decay, as in google-deepmind/deepmind-research `perceiver/train/experiment.py`.
  """

  def decays(path: tuple, _: Any) -> bool:
    names = {str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path}
    return names.isdisjoint({'bias', 'scale'})

  return jax.tree_util.tree_map_with_path(decays, params)


def adamw_warmup_cosine(
  peak: float, num_steps: int, *, warmup_steps: int, weight_decay: float = 0.01, clip: float = 1.0
) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019) with global-norm clipping; linear warm-up to `peak`, then a cosine to zero.

  Raises:
    ValueError: if the warm-up leaves no step for the cosine.
  """
  check_numbers({'peak': peak, 'weight_decay': weight_decay, 'clip': clip}, least=0)
  if not 0 <= warmup_steps < num_steps:
    raise ValueError(f'warmup_steps must be in [0, num_steps); got {warmup_steps} of {num_steps} steps.')
  # One past the end: the last update still has a learning rate above zero, and so has the first.
  schedule = optax.warmup_cosine_decay_schedule(peak / (warmup_steps + 1), peak, warmup_steps, num_steps)
  return optax.chain(
    optax.clip_by_global_norm(clip),
    _scale_by_adam(),
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(schedule),
  )


def _scale_by_adam(b2: float = 0.999, nesterov: bool = False) -> optax.GradientTransformation:
  """Adam's moments, of all small parameters in one vector: what is computed is the same, in a fraction of the programs.

  Large parameters stay as they are, because a mesh splits them (`training.sharding`).
  """

  def sizes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: 'small' if leaf.size < MIN_SHARDED_SIZE else 'large', params)

  adam = optax.scale_by_adam(b2=b2, nesterov=nesterov)
  return optax.partition({'small': _on_one_vector(adam), 'large': adam}, sizes)


def _on_one_vector(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """As `optax.flatten`, which fails where there is no parameter at all."""

  def init(params: Any) -> Any:
    return inner.init(ravel_pytree(params)[0])

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    vector, as_tree = ravel_pytree(updates)
    vector, state = inner.update(vector, state)
    return as_tree(vector), state

  return optax.GradientTransformation(init, update)


def muon_and_adam(num_steps: int, *, learning_rate: float, matrix_learning_rate: float) -> optax.GradientTransformation:
  """Muon (Jordan 2024; optax) for the kernels of layers, Adam for all else; warm-up over a twentieth, then linear to 0.

  Muon's step has the same size in all directions of a matrix. Tables of embeddings, positions, latents and queries, and
  the final projection, are no maps between hidden channels: Adam trains them, with the biases and scales.
  """
  check_counts({'num_steps': num_steps})
  check_numbers({'learning_rate': learning_rate, 'matrix_learning_rate': matrix_learning_rate}, least=0)
  warmup = max(1, num_steps // 20)

  def schedule(peak: float) -> optax.Schedule:
    down = optax.linear_schedule(peak, 0.0, num_steps - warmup + 1)
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), down], [warmup])

  def labels(params: Any) -> Any:
    return jax.tree.map(lambda turned: 'muon' if turned else 'adam', layer_kernels(params))

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.partition(
      {
        # The usual coefficients, written once an iteration: optax then loops over them instead of unrolling.
        'muon': contrib.muon(schedule(matrix_learning_rate), ns_coeffs=((3.4445, -4.7750, 2.0315),) * 5),
        'adam': optax.chain(
          _scale_by_adam(b2=0.98, nesterov=True), optax.scale_by_learning_rate(schedule(learning_rate))
        ),
      },
      labels,
    ),
  )


def layer_kernels(params: Any) -> Any:
  """True for what Muon turns: the kernels between hidden channels."""

  def turned(path: tuple, leaf: Array) -> bool:
    names = [str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path]
    final = 'head' in names or ('output' in names and 'attention' not in names)
    return leaf.ndim == 2 and 'kernel' in names and not final

  return jax.tree_util.tree_map_with_path(turned, params)
