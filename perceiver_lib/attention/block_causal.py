"""Self-attention of T x S latents that computes only the pairs the rule allows.

Latents lie timestep by timestep, so the rule is a lower triangle of blocks: a scan runs over its block pairs, forward
and backward, and keeps nothing but the output and the log-sum-exp. The published sketch of the unified model built the
whole (T S) x (T S) matrix, ran out of memory, and left the latents unmasked, which lets the future into the past.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.attend import choose_chunk_size
from perceiver_lib.attention.capture import recorder
from perceiver_lib.attention.softmax import READ, PartialSoftmax, allowed_pairs, chunk_gradients, scaled_logits
from perceiver_lib.tokens import sum_type

BLOCK_ROWS = 256
"""Latents a block, in whole timesteps; larger blocks compute more of the forbidden half on the diagonal."""


def worth_blocks(q: Float[Array, 'b h n k'], num_latents_per_timestep: int) -> bool:
  """Whether so many latents are better attended to in blocks, from which no attention map can be recorded."""
  b, h, n, _ = q.shape
  return n > num_latents_per_timestep and choose_chunk_size(b * h * n, n) is not None and recorder() is None


def block_causal_attend(
  q: Float[Array, 'b h n k'],
  k: Float[Array, 'b h n k'],
  v: Float[Array, 'b h n v'],
  *,
  time: Int[Array, 'b n'],
  valid: Bool[Array, 'b n'] | None = None,
  num_latents_per_timestep: int,
  block_rows: int | None = None,
) -> Float[Array, 'b h n v']:
  """Equals `attend` with these times, in outputs and gradients, at half the work and O(n) memory.

  Args:
    time: of every latent; S neighbours share a timestep, and times rise from one timestep to the next.
    valid: False = padding, whose keys and values may hold anything.
    num_latents_per_timestep: S.
    block_rows: latents a block, rounded to whole timesteps; None = `BLOCK_ROWS`.
  """
  n, s = q.shape[2], num_latents_per_timestep
  if n % s:
    raise ValueError(f'Latents must be whole timesteps of {s}; got {n} latents.')
  block = s * min(max((block_rows or BLOCK_ROWS) // s, 1), n // s)
  if valid is not None:
    exists = valid[:, None, :, None]
    k, v = (jnp.where(exists, array, jnp.zeros((), array.dtype)) for array in (k, v))
  if padding := -n % block:
    valid = jnp.ones(time.shape, bool) if valid is None else valid
    time, valid = (jnp.pad(array, ((0, 0), (0, padding))) for array in (time, valid))
    q, k, v = (jnp.pad(array, ((0, 0), (0, 0), (0, padding), (0, 0))) for array in (q, k, v))
  return _triangle(q, k, v, time, valid, block)[0][:, :, :n].astype(v.dtype)


def _block_pairs(num_rows: int, block: int) -> Int[np.ndarray, 'c 2']:
  """Query block and key block of the lower triangle: 0 0, 1 0, 1 1, 2 0, ..."""
  return np.stack(np.tril_indices(num_rows // block), axis=1).astype(np.int32)


def _part(array: Array, index: Array, block: int, axis: int = 2) -> Array:
  return jax.lax.dynamic_slice_in_dim(array, index * block, block, axis=axis)


def _put(array: Array, part: Array, index: Array, block: int) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(array, part, index * block, axis=2)


def _allowed(time: Array, valid: Array | None, i: Array, j: Array, block: int) -> Bool[Array, 'b 1 i j']:
  key_valid = None if valid is None else _part(valid, j, block, axis=1)
  return allowed_pairs(_part(time, i, block, axis=1), _part(time, j, block, axis=1), key_valid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _triangle(q: Array, k: Array, v: Array, time: Array, valid: Array | None, block: int) -> tuple[Array, Array]:
  def fold(state: PartialSoftmax, pair: Array) -> tuple[PartialSoftmax, None]:
    i, j = pair
    part = jax.tree.map(lambda x: _part(x, i, block), state)
    logits = scaled_logits(_part(q, i, block), _part(k, j, block))
    part = part.fold(logits, _allowed(time, valid, i, j, block), _part(v, j, block))
    return jax.tree.map(lambda x, new: _put(x, new, i, block), state, part), None

  state = PartialSoftmax.empty(q.shape[:3], v.shape[-1], sum_type(q))
  state, _ = jax.lax.scan(fold, state, _block_pairs(q.shape[2], block))
  return state.output(), state.log_sum_exp()


def _forward(q, k, v, time, valid, block):
  output, log_sum_exp = checkpoint_name(_triangle(q, k, v, time, valid, block), READ)
  return (output, log_sum_exp), (q, k, v, time, valid, output, log_sum_exp)


def _backward(block, residuals, cotangents):
  q, k, v, time, valid, output, log_sum_exp = residuals
  d_output = cotangents[0].astype(sum_type(q))
  correction = jnp.sum(d_output * output, axis=-1)

  def step(carry, pair):
    i, j = pair
    d_q, d_k, d_v = carry
    q_i, d_i, k_j, v_j = _part(q, i, block), _part(d_output, i, block), _part(k, j, block), _part(v, j, block)
    allowed = _allowed(time, valid, i, j, block)
    known = {'log_sum_exp': _part(log_sum_exp, i, block), 'd_output': d_i, 'shift': _part(correction, i, block)}
    more_q, more_k, more_v = chunk_gradients(q_i, k_j, v_j, allowed=allowed, **known)
    d_q = _put(d_q, _part(d_q, i, block) + more_q, i, block)
    d_k = _put(d_k, _part(d_k, j, block) + more_k, j, block)
    return (d_q, d_k, _put(d_v, _part(d_v, j, block) + more_v, j, block)), None

  zeros = tuple(jnp.zeros(array.shape, sum_type(array)) for array in (q, k, v))
  (d_q, d_k, d_v), _ = jax.lax.scan(step, zeros, _block_pairs(q.shape[2], block))
  return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_triangle.defvjp(_forward, _backward)
