"""What is measured on held-out data, as exact means: padding that fills up a last batch counts nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

Weighted = Num[Array, 'b ...'] | tuple[Num[Array, 'b ...'], Num[Array, 'b ...'] | Bool[Array, 'b ...']]


def correct(logits: Float[Array, '*positions e'], labels: Int[Array, '...']) -> Float[Array, '*positions']:
  """1 where the highest score is the label's, 0 elsewhere; NaN where a score is.

  Raises:
    ValueError: if there is not one label per row of logits.
  """
  if labels.shape != logits.shape[:-1]:
    raise ValueError(f'correct needs labels of shape {logits.shape[:-1]}; got {labels.shape}.')
  return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, (logits.argmax(-1) == labels).astype(jnp.float32))


def accuracy(
  logits: Float[Array, '*positions e'],
  labels: Int[Array, '...'],
  *,
  valid: Bool[Array, '...'] | None = None,
) -> Float[Array, '']:
  """Share of the valid positions whose highest score is the label's, in [0, 1]; 0 where no position is valid."""
  hits = correct(logits, labels)
  if valid is None:
    return hits.mean()
  return jnp.where(valid, hits, 0.0).sum() / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


def bits_per_byte(nats_per_token: float, *, bytes_per_token: float = 1.0) -> float:
  """Code length in bits a byte. A model that knows nothing about bytes has 8."""
  return nats_per_token / math.log(2.0) / bytes_per_token


def perplexity(nats_per_token: float) -> float:
  """exp of the mean loss: the number of equally likely tokens that would be as hard to guess."""
  return math.exp(nats_per_token)


@functools.lru_cache(maxsize=64)
def _batch_sums(metric_fn: Callable, graphdef: Any) -> Callable:
  @jax.jit
  def batch_sums(state: Any, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    example_valid = batch.get('example_valid')
    sums = {}
    for name, measured in metric_fn(nnx.merge(graphdef, state), batch).items():
      values, weights = measured if isinstance(measured, tuple) else (measured, None)
      values = jnp.asarray(values).astype(jnp.float32)
      weights = jnp.ones_like(values) if weights is None else jnp.asarray(weights).astype(jnp.float32)
      if values.ndim == 0 or values.shape != weights.shape:
        raise ValueError(
          f'metric {name!r} must be an array [batch, ...], or a pair of values and weights of one shape; got shapes '
          f'{values.shape} and {weights.shape}. Return the values of single examples, not their mean.'
        )
      if example_valid is not None:
        weights = weights * example_valid.astype(jnp.float32).reshape((-1,) + (1,) * (values.ndim - 1))
      sums[name] = jnp.where(weights > 0, values * weights, 0.0).sum(), weights.sum()
    return sums

  return batch_sums


def evaluate_dataset(
  model: nnx.Module,
  metric_fn: Callable[[nnx.Module, Mapping[str, Array]], Mapping[str, Weighted]],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """Weighted means over a whole data set, compiled once for each metric function, model structure and batch shape.

  Sums over a batch are taken on the device and fetched together at the end; sums over batches are float64.

  Args:
    model: called without `rngs` by `metric_fn`, hence without dropout.
    metric_fn: (model, batch) -> {name: values [b, ...] or (values, weights)}, values of single examples or tokens.
      Pass the same function object every time: a new lambda compiles anew.
    batches: dicts of arrays. `example_valid` bool [b], where present, marks the examples that are no padding.

  Raises:
    ValueError: if there is no batch, a metric has no weight at all, or its shapes do not fit.
  """
  graphdef, state = nnx.split(model)
  batch_sums = _batch_sums(metric_fn, graphdef)
  sums = jax.device_get([batch_sums(state, batch) for batch in batches])
  if not sums:
    raise ValueError('evaluate_dataset got no batch; pass a fresh iterator, and check that the split is not empty.')
  means = {}
  for name in sums[0]:
    total, weight = np.sum([batch[name] for batch in sums], axis=0, dtype=np.float64)
    if weight == 0:
      raise ValueError(f'metric {name!r} has no valid example or token in the whole data set.')
    means[name] = float(total / weight)
  return means


@functools.lru_cache(maxsize=64)
def _forward(forward: Callable, graphdef: Any) -> Callable:
  return jax.jit(lambda state, batch: forward(nnx.merge(graphdef, state), batch))


def predict(
  model: nnx.Module,
  forward: Callable[[nnx.Module, Mapping[str, Array]], Any],
  batches: Iterable[Mapping[str, Any]],
) -> Any:
  """`forward(model, batch)` for every example of a data set, in order, without the fillings of a last batch.

  Args:
    model: called without `rngs` by `forward`, hence without dropout.
    forward: (model, batch) -> an array [b, ...], or a tree of them. Pass the same function object every time: a new
      lambda compiles anew.
    batches: as for `evaluate_dataset`.

  Returns:
    NumPy arrays [n, ...].

  Raises:
    ValueError: if there is no batch.
  """
  graphdef, state = nnx.split(model)
  compiled, parts = _forward(forward, graphdef), []
  for batch in batches:
    outputs = jax.tree.map(np.asarray, compiled(state, batch))
    if 'example_valid' in batch:
      num_valid = int(np.sum(batch['example_valid']))  # fillings stand at the end of the last batch
      outputs = jax.tree.map(lambda array, end=num_valid: array[:end], outputs)
    parts.append(outputs)
  if not parts:
    raise ValueError('predict got no batch; pass a fresh iterator, and check that the split is not empty.')
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
