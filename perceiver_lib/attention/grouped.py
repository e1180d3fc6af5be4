"""The same queries over groups of tokens: one pass in chunks, each of one group, for the unified model's encoder.

Memory does not grow with the input: the backward pass keeps the maxima and makes each chunk's keys and values again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from perceiver_lib.attention.softmax import PartialSoftmax, chunk_gradients, scaled_logits
from perceiver_lib.attention.streamed import KeyStream, cleaned, keys_and_values_vjp
from perceiver_lib.tokens import Tokens, sum_type


def first_segment_time(window: int | None) -> int:
  """With a window, timesteps before the first are kept apart, because step 0 may see some of them and step 1 not."""
  return 0 if window is None else 1 - window


class Plan(NamedTuple):
  """Which tokens a chunk holds: tokens sorted by group, each group in whole chunks.

  Attributes:
    order: token indices, sorted by group.
    group, first, count: of each chunk: its group, its first place in `order`, and its tokens.
    num_chunks: of the example that has most.
  """

  order: Int[Array, 'b m']
  group: Int[Array, 'b c']
  first: Int[Array, 'b c']
  count: Int[Array, 'b c']
  num_chunks: Int[Array, '']


def plan_chunks(tokens: Tokens, num_timesteps: int, window: int | None, chunk_size: int) -> Plan:
  """Group 0 is the source, behind it one group a timestep from `first_segment_time` on; padding has none.

  Args:
    tokens: as `tokens.readable` leaves them, so that what no timestep reads is padding.
  """
  before = first_segment_time(window) - 1
  num_groups = num_timesteps - before
  # Clipped first: the difference of two extreme int32 times would wrap around and let the future in.
  group = jnp.clip(tokens.time.astype(jnp.int32), before, num_timesteps) - before
  group = jnp.where(tokens.valid, group, num_groups)
  order = jnp.argsort(group, axis=1, stable=True).astype(jnp.int32)
  counts = jax.vmap(lambda row: jnp.bincount(row, length=num_groups + 1))(group)[:, :num_groups].astype(jnp.int32)
  chunks = -(-counts // chunk_size)
  last_chunk = jnp.cumsum(chunks, axis=1)
  index = jnp.arange((tokens.num_tokens + num_groups * (chunk_size - 1)) // chunk_size, dtype=jnp.int32)
  chunk_group = jax.vmap(lambda row: jnp.searchsorted(row, index, side='right'))(last_chunk)
  chunk_group = jnp.minimum(chunk_group, num_groups - 1).astype(jnp.int32)

  def of_group(array: Array) -> Array:
    return jnp.take_along_axis(array, chunk_group, axis=1)

  offset = (index[None] - of_group(last_chunk - chunks)) * chunk_size
  return Plan(
    order=order,
    group=chunk_group,
    first=of_group(jnp.cumsum(counts, axis=1) - counts) + offset,
    count=jnp.clip(of_group(counts) - offset, 0, chunk_size),
    num_chunks=jnp.max(last_chunk[:, -1]),
  )


def _chunk(tokens: Tokens, plan: Plan, index: Array, chunk_size: int) -> tuple[Tokens, Int[Array, 'b j']]:
  """Chunk number `index` of each example and its token indices, which lie out of range where the chunk has room."""
  lane = jnp.arange(chunk_size, dtype=jnp.int32)[None]
  valid = lane < plan.count[:, index, None]
  rank = jnp.minimum(plan.first[:, index, None] + lane, tokens.num_tokens - 1)
  at = jnp.take_along_axis(plan.order, rank, axis=1)

  def take(leaf: Array) -> Array:
    return leaf[_rows(leaf, at), at]

  position = None if tokens.position is None else take(tokens.position)
  chunk = Tokens(values=take(tokens.values), position=position, time=take(tokens.time), valid=valid)
  return cleaned(chunk), jnp.where(valid, at, tokens.num_tokens)


def _rows(leaf: Array, at: Int[Array, 'b j']) -> Int[Array, 'b 1']:
  """The example that an entry belongs to; positions may be shared by all examples."""
  b = at.shape[0]
  return (jnp.arange(b) if leaf.shape[0] == b else jnp.zeros(b, jnp.int32))[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_read(
  q: Array, streams: tuple[KeyStream, ...], plans: tuple[Plan, ...], sizes: tuple[int, int]
) -> tuple[Array, Array, Array]:
  """A `PartialSoftmax` `[b, g, h, s]` of the same S queries over each group; sizes = (number of groups, chunk size)."""
  num_groups, chunk_size = sizes
  b, h, s = q.shape[:3]
  probe = jax.eval_shape(
    lambda: streams[0].project(streams[0].params, _chunk(streams[0].tokens, plans[0], jnp.int32(0), 1)[0])
  )
  empty = PartialSoftmax.empty((b, h, s), probe[1].shape[-1], sum_type(q))
  state = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (b, num_groups, *x.shape[1:])), empty)
  every = jnp.arange(b)
  for stream, plan in zip(streams, plans, strict=True):

    def fold(index: Array, state: PartialSoftmax, stream: KeyStream = stream, plan: Plan = plan) -> PartialSoftmax:
      chunk, _ = _chunk(stream.tokens, plan, index, chunk_size)
      k, v = stream.project(stream.params, chunk)
      group = plan.group[:, index]
      part = jax.tree.map(lambda x: x[every, group], state)
      part = part.fold(scaled_logits(q, k), chunk.valid[:, None, None, :], v)
      return jax.tree.map(lambda x, new: x.at[every, group].set(new), state, part)

    state = jax.lax.fori_loop(0, plan.num_chunks, fold, state)
  return tuple(state)


def _forward(q, streams, plans, sizes):
  state = grouped_read(q, streams, plans, sizes)
  return state, (q, streams, plans, state[0])


def _backward(sizes, residuals, cotangents):
  q, streams, plans, maximum = residuals
  # The maximum is a constant: it cancels in every finished softmax.
  _, d_denominator, d_numerator = cotangents
  every, chunk_size = jnp.arange(q.shape[0]), sizes[1]
  d_q, d_streams = jnp.zeros(q.shape, sum_type(q)), []
  for stream, plan in zip(streams, plans, strict=True):

    def step(index, carry, stream=stream, plan=plan):
      d_q, d_params, d_leaves = carry
      chunk, at = _chunk(stream.tokens, plan, index, chunk_size)
      (k, v), pull_back = keys_and_values_vjp(stream, chunk)
      group, allowed = plan.group[:, index], chunk.valid[:, None, None, :]
      more_q, d_k, d_v = chunk_gradients(
        q,
        k,
        v,
        allowed=allowed,
        log_sum_exp=maximum[every, group],
        d_output=d_numerator[every, group],
        shift=-d_denominator[every, group],
      )
      d_chunk_params, d_floats = pull_back((d_k.astype(k.dtype), d_v.astype(v.dtype)))
      d_params = jax.tree.map(jnp.add, d_params, d_chunk_params)
      d_leaves = [x.at[_rows(x, at), at].add(part, mode='drop') for x, part in zip(d_leaves, d_floats, strict=True)]
      return d_q + more_q, d_params, d_leaves

    d_q, *d_stream = jax.lax.fori_loop(0, plan.num_chunks, step, (d_q, *stream.no_gradients()))
    d_streams.append(stream.cotangent(*d_stream))
  return d_q.astype(q.dtype), tuple(d_streams), None


grouped_read.defvjp(_forward, _backward)
