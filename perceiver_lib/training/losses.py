"""Losses that ignore padding exactly: an invalid position adds nothing, whatever its logits hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.settings import check_numbers
from perceiver_lib.tokens import sum_type


def cross_entropy(
  logits: Float[Array, '*positions e'],
  labels: Int[Array, '...'],
  *,
  valid: Bool[Array, '...'] | None = None,
  reduction: str = 'mean',
  z_loss: float = 0.0,
) -> Float[Array, '...']:
  """Softmax cross-entropy in nats, in float32, or in float64 where the logits are.

  A label outside [0, e) makes the loss NaN, so that the loss guard of `fit` reports it; JAX cannot raise inside jit.

  Args:
    logits: one score for each of e classes at every position.
    labels: the class at every position.
    valid: False = no target here: the position's logits and label are not even read.
    reduction: 'mean' over the valid positions (0 where none is valid), their 'sum', or 'none': one loss a position,
      0 where invalid.
    z_loss: weight of log(Z)^2, which keeps the softmax normaliser near 1 (PaLM, section 5; 1e-4 in Perceiver AR).

  Raises:
    ValueError: if shapes do not fit together, or the reduction is unknown.
  """
  if labels.shape != logits.shape[:-1]:
    raise ValueError(
      f'cross_entropy needs one label per row of logits: labels of shape {logits.shape[:-1]} for logits of shape '
      f'{logits.shape}; got labels of shape {labels.shape}.'
    )
  if valid is not None and valid.shape != labels.shape:
    raise ValueError(f'valid must have the shape of the labels, {labels.shape}; got {valid.shape}.')
  check_numbers({'z_loss': z_loss}, least=0)
  if reduction not in ('mean', 'sum', 'none'):
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}.")
  logits = logits.astype(sum_type(logits))
  if valid is not None:
    # Masked before the softmax: masking the result only would leave NaN in the gradient (0 x NaN).
    logits = jnp.where(valid[..., None], logits, 0.0)
    labels = jnp.where(valid, labels, 0)
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  target = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode='fill', fill_value=jnp.nan)[..., 0]
  # Negative labels count from the end in NumPy indexing; here they are a mistake like any other.
  target = jnp.where(labels < 0, jnp.nan, target)
  loss = log_normaliser - target
  if z_loss:
    loss = loss + z_loss * jnp.square(log_normaliser)
  if valid is not None:
    loss = jnp.where(valid, loss, 0.0)
  if reduction == 'none':
    return loss
  if reduction == 'sum':
    return loss.sum()
  return loss.mean() if valid is None else loss.sum() / jnp.maximum(valid.sum(dtype=loss.dtype), 1.0)
