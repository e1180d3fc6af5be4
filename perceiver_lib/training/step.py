"""What `fit` compiles: the loss as a pure function, the state of a training, and the update of that state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Batch = Mapping[str, Any]
"""Arrays by name."""

LossFn = Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]
"""`(model, batch, rngs) -> (scalar loss, dict of scalars)`, as `fit` takes it."""


def functional_loss(graphdef: Any, loss_fn: LossFn) -> Callable:
  """(params, rest, batch, key) -> (loss, (metrics, rest)): the loss without a module, and `rest` after it."""

  # jit here traces the model once for both its shapes and its gradient; inline leaves no trace in the program.
  @jax.jit(inline=True)
  def loss_of(params, rest, batch, key):
    model = nnx.merge(graphdef, params, rest)
    loss, metrics = loss_fn(model, batch, rngs=nnx.Rngs(dropout=key))
    _, _, rest = nnx.split(model, nnx.Param, ...)
    return loss, (dict(metrics), rest)

  return loss_of


def initial_state(params, rest, optimizer, seed, loss_of, example, *, ema: bool) -> dict[str, Any]:
  """Copies of the parameters, the optimizer's state, and sums of what is logged since the last record.

  Raises:
    ValueError: if the loss or a metric is not a scalar.
  """
  key = jax.random.key(seed)
  loss, (metrics, _) = jax.eval_shape(loss_of, params, rest, example, key)
  if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
    raise ValueError(
      f'loss_fn must return (scalar float loss, dict of scalars); got a loss of {loss.shape} {loss.dtype}.'
    )
  if taken := {'loss', 'gradient_norm'} & set(metrics):
    raise ValueError(f'loss_fn must call its metrics otherwise than {", ".join(sorted(taken))}, which fit records.')
  for name, metric in metrics.items():
    if metric.shape != ():
      raise ValueError(f'metric {name!r} of loss_fn must be a scalar, a mean over the batch; got shape {metric.shape}.')

  # One program, because eager initialisation compiles several for every shape of parameter.
  @jax.jit
  def made(params, rest, key):
    # Copies, because the step donates its state: the caller's model must survive it.
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    state = {
      'params': params,
      'rest': rest,
      'opt_state': optimizer.init(params),
      'step': jnp.int32(0),
      'key': key,
      'window': {name: jnp.float32(0) for name in [*metrics, 'loss', 'gradient_norm']},
      'first_bad': {'step': jnp.int32(0), 'loss': jnp.float32(0)},
    }
    return state | ({'ema': jax.tree.map(jnp.copy, params)} if ema else {})

  return made(params, rest, key)


def make_train_step(loss_of: Callable, optimizer: Any, ema_decay: float | None, log_every: int) -> Callable:
  """(state, batch) -> state after one update."""

  def train_step(state, batch):
    step = state['step']
    key = jax.random.fold_in(state['key'], step)
    gradient_fn = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (metrics, rest)), gradients = gradient_fn(state['params'], state['rest'], batch, key)
    gradient_norm = optax.tree.norm(gradients).astype(jnp.float32)
    loss = loss.astype(jnp.float32)
    # optax mixes dtypes (decay ** int32 count), which strict promotion would refuse.
    with jax.numpy_dtype_promotion('standard'):
      updates, opt_state = optimizer.update(gradients, state['opt_state'], state['params'])
    new = {'params': optax.apply_updates(state['params'], updates), 'rest': rest, 'opt_state': opt_state}
    if ema_decay is not None:
      count = step.astype(jnp.float32)
      decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
      new['ema'] = jax.tree.map(
        lambda average, value: average + (1.0 - decay).astype(average.dtype) * (value - average),
        state['ema'],
        new['params'],
      )
    # From the first bad step on nothing is updated, so the host may look as rarely as it likes.
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    keep = finite & (state['first_bad']['step'] == 0)
    new = jax.tree.map(lambda after, before: jnp.where(keep, after, before), new, {name: state[name] for name in new})
    is_first = ~finite & (state['first_bad']['step'] == 0)
    seen = metrics | {'loss': loss, 'gradient_norm': gradient_norm}
    starts = step % log_every == 0
    return (
      state
      | new
      | {
        'step': step + 1,
        'window': {
          name: jnp.where(starts, 0.0, total) + seen[name].astype(jnp.float32)
          for name, total in state['window'].items()
        },
        'first_bad': {
          'step': jnp.where(is_first, step + 1, state['first_bad']['step']),
          'loss': jnp.where(is_first, loss, state['first_bad']['loss']),
        },
      }
    )

  return train_step
