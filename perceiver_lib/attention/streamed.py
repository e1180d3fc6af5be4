"""Attention over inputs of any length in memory that does not grow with them.

Keys and values never exist all at once. A `KeyStream` makes them a chunk of tokens at a time (input adapter, layer norm
and projection included) and an online softmax folds each chunk into a running maximum, numerator and denominator. The
backward pass is our own: it keeps the output and the log-sum-exp, and makes each chunk's keys and values again.
Rabe and Staats (arXiv 2112.05682) and FlashAttention (arXiv 2205.14135) give the two ideas.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from perceiver_lib.attention.capture import Chosen
from perceiver_lib.attention.softmax import READ, PartialSoftmax, allowed_pairs, chunk_gradients, scaled_logits
from perceiver_lib.tokens import Tokens, pytree_dataclass, sum_type, zero_invalid


@pytree_dataclass(static=('project',))
class KeyStream:
  """Where keys and values come from.

  Attributes:
    project: `(params, chunk: Tokens) -> (keys [b h j k], values [b h j v])`; must be hashable and close over no arrays.
    params: what `project` differentiates, any tree of float arrays.
    tokens: the raw tokens, `[b, m, ...]`.
  """

  project: Callable[[Any, Tokens], tuple[Array, Array]]
  params: Any
  tokens: Tokens

  def no_gradients(self) -> tuple[Any, list[Array]]:
    """Zeros for the gradients of the params and of the tokens' floats."""
    floats = [leaf for leaf in jax.tree.leaves(self.tokens) if _is_float(leaf)]
    return jax.tree.map(jnp.zeros_like, (self.params, floats))

  def cotangent(self, d_params: Any, d_floats: list[Array]) -> KeyStream:
    """These gradients in the stream's structure; integers and booleans have none."""
    leaves, treedef = jax.tree.flatten(self.tokens)
    floats = iter(d_floats)
    d_tokens = jax.tree.unflatten(treedef, [next(floats) if _is_float(leaf) else None for leaf in leaves])
    return dataclasses.replace(self, params=d_params, tokens=d_tokens)


def _is_float(leaf: Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def cleaned(tokens: Tokens) -> Tokens:
  """The same tokens with zeros for the values of padding, and for positions at which no example has a token."""
  position = tokens.position
  if position is not None and tokens.valid is not None:
    shared = position.shape[0] != tokens.valid.shape[0]
    position = zero_invalid(position, tokens.valid.any(axis=0, keepdims=True) if shared else tokens.valid)
  return dataclasses.replace(tokens, values=zero_invalid(tokens.values, tokens.valid), position=position)


def refuse_out_of_range(adapter: Callable[[Tokens], Array], tokens: Tokens) -> None:
  """Lets an adapter's tables refuse the least and the largest of all numbers, where these are known.

  The chunks themselves are read in a compiled loop, where nothing can raise.
  """
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tokens)):
    return
  tokens = cleaned(tokens)

  def both(array: Array) -> Array:
    return jnp.stack([array.min(axis=(0, 1)), array.max(axis=(0, 1))])[None]

  adapter(Tokens(values=both(tokens.values), position=None if tokens.position is None else both(tokens.position)))


def chunk_of(tokens: Tokens, index: Int[Array, ''], chunk_size: int) -> Tokens:
  """Chunk number `index`.

  The last chunk starts early enough to be full, so nothing is padded or copied; the tokens that it shares with the
  chunk before are marked invalid.
  """
  num_tokens = tokens.num_tokens
  start = jnp.minimum(index * chunk_size, num_tokens - chunk_size)
  chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, chunk_size, axis=1), tokens)
  if num_tokens % chunk_size:
    fresh = jnp.broadcast_to(start + jnp.arange(chunk_size) >= index * chunk_size, (tokens.batch_size, chunk_size))
    chunk = dataclasses.replace(chunk, valid=fresh if chunk.valid is None else fresh & chunk.valid)
  return cleaned(chunk)


def keys_and_values_vjp(stream: KeyStream, chunk: Tokens) -> tuple[tuple[Array, Array], Callable]:
  """A chunk's keys and values, and what turns their gradients into those of the params and of the chunk's floats.

  Integers and booleans (bytes, ids, times) have no gradient; only float leaves of the tokens are differentiated.
  """
  leaves, treedef = jax.tree.flatten(chunk)
  floats = [leaf for leaf in leaves if _is_float(leaf)]

  def project(params, floats):
    floats = iter(floats)
    merged = [next(floats) if _is_float(leaf) else leaf for leaf in leaves]
    return stream.project(params, jax.tree.unflatten(treedef, merged))

  return jax.vjp(project, stream.params, floats)


def num_chunks(stream: KeyStream, chunk_size: int) -> int:
  return -(-stream.tokens.num_tokens // chunk_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def streamed_attend(
  q: Float[Array, 'b h i k'],
  streams: tuple[KeyStream, ...],
  query_time: Int[Array, 'b i'] | None,
  chunk_size: int,
) -> tuple[Float[Array, 'b h i v'], Float[Array, 'b h i']]:
  """Attention over all tokens of all streams in one softmax, and the log-sum-exp of its logits (no gradient)."""
  probe = streams[0]
  num_value_channels = jax.eval_shape(lambda: probe.project(probe.params, chunk_of(probe.tokens, jnp.int32(0), 1)))[
    1
  ].shape[-1]
  state = PartialSoftmax.empty(q.shape[:3], num_value_channels, sum_type(q))
  for stream in streams:
    size = min(chunk_size, stream.tokens.num_tokens)

    def fold(state: PartialSoftmax, index: Array, stream: KeyStream = stream, size: int = size):
      chunk = chunk_of(stream.tokens, index, size)
      k, v = stream.project(stream.params, chunk)
      allowed = allowed_pairs(query_time, chunk.time, chunk.valid)
      return state.fold(scaled_logits(q, k), allowed, v), None

    state, _ = jax.lax.scan(fold, state, jnp.arange(num_chunks(stream, size)))
  return state.output(), state.log_sum_exp()


def _forward(q, streams, query_time, chunk_size):
  output, log_sum_exp = checkpoint_name(streamed_attend(q, streams, query_time, chunk_size), READ)
  return (output, log_sum_exp), (q, streams, query_time, output, log_sum_exp)


def _backward(chunk_size, residuals, cotangents):
  q, streams, query_time, output, log_sum_exp = residuals
  d_output = cotangents[0].astype(sum_type(q))
  correction = jnp.sum(d_output * output, axis=-1)
  d_q, d_streams = jnp.zeros(q.shape, sum_type(q)), []
  for stream in streams:
    size = min(chunk_size, stream.tokens.num_tokens)

    def step(carry, index, stream=stream, size=size):
      d_q, d_params, d_leaves = carry
      chunk = chunk_of(stream.tokens, index, size)
      (k, v), pull_back = keys_and_values_vjp(stream, chunk)
      allowed = allowed_pairs(query_time, chunk.time, chunk.valid)
      more_q, d_k, d_v = chunk_gradients(
        q, k, v, allowed=allowed, log_sum_exp=log_sum_exp, d_output=d_output, shift=correction
      )
      d_chunk_params, d_floats = pull_back((d_k.astype(k.dtype), d_v.astype(v.dtype)))
      d_params = jax.tree.map(jnp.add, d_params, d_chunk_params)
      start = jnp.minimum(index * size, stream.tokens.num_tokens - size)
      d_leaves = [_add_at(total, part, start) for total, part in zip(d_leaves, d_floats, strict=True)]
      return (d_q + more_q, d_params, d_leaves), None

    carry = (d_q, *stream.no_gradients())
    (d_q, *d_stream), _ = jax.lax.scan(step, carry, jnp.arange(num_chunks(stream, size)))
    d_streams.append(stream.cotangent(*d_stream))
  return d_q.astype(q.dtype), tuple(d_streams), None


def _add_at(total: Array, part: Array, start: Array) -> Array:
  """Adds a chunk's gradient in place; what two chunks share is invalid in one of them, and its gradient there is 0."""
  present = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], axis=1)
  return jax.lax.dynamic_update_slice_in_dim(total, present + part, start, axis=1)


streamed_attend.defvjp(_forward, _backward)


def streamed_logits(
  q: Float[Array, 'b h i k'], streams: tuple[KeyStream, ...], chunk_size: int, heads: Chosen = slice(None)
) -> Float[Array, 'b h i j']:
  """Every logit of a few queries over all tokens, made a chunk at a time: for attention maps, not for training.

  `heads` are those of `q` among the heads of the keys.
  """
  parts = []
  for stream in streams:
    size = min(chunk_size, stream.tokens.num_tokens)

    def one(index, stream=stream, size=size):
      return scaled_logits(q, stream.project(stream.params, chunk_of(stream.tokens, index, size))[0][:, heads])

    count = num_chunks(stream, size)
    chunks = rearrange(jax.lax.map(one, jnp.arange(count)), 'c b h i j -> b h i (c j)')
    # The last chunk starts early enough to be full: what it shares with the one before is cut off.
    whole, shared = (count - 1) * size, count * size - stream.tokens.num_tokens
    parts += [chunks[..., :whole], chunks[..., whole + shared :]]
  return jnp.concatenate(parts, axis=-1)
