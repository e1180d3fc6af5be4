"""Multi-head attention under the one rule, dense or streamed behind one signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.capture import Chosen, record_weights
from perceiver_lib.attention.projections import (
  KeyValueReader,
  joined_times,
  joined_validity,
  key_stream,
  keys_and_values,
)
from perceiver_lib.attention.softmax import MASKED_LOGIT, PartialSoftmax, allowed_pairs, scaled_logits
from perceiver_lib.attention.streamed import KeyStream, streamed_attend, streamed_logits
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, readable


def reference_attend(
  q: Float[Array, 'b h i k'],
  k: Float[Array, 'b h j k'],
  v: Float[Array, 'b h j v'],
  allowed: Bool[Array, 'b #i j'],
) -> Float[Array, 'b h i v']:
  """What attention means. Every form in this folder equals it in outputs and gradients; those for long inputs never
  make its whole matrix, and all of them also keep NaN out of padding.

  `allowed` is the mask of `tokens.may_attend`; a query that may attend to nothing reads exactly zero.
  """
  logits = jnp.einsum('bhik,bhjk->bhij', q, k) / q.shape[-1] ** 0.5
  weights = jax.nn.softmax(jnp.where(allowed[:, None], logits, MASKED_LOGIT), axis=-1)
  weights = jnp.where(allowed[:, None], weights, 0.0)
  return jnp.einsum('bhij,bhjv->bhiv', weights, v)


def attend(
  q: Float[Array, 'b h i k'],
  k: Float[Array, 'b h j k'],
  v: Float[Array, 'b h j v'],
  *,
  query_time: Int[Array, 'b i'] | None = None,
  key_time: Int[Array, 'b j'] | None = None,
  key_valid: Bool[Array, 'b j'] | None = None,
  chunk_size: int | None = None,
) -> Float[Array, 'b h i v']:
  """softmax(q k^T / sqrt(key width)) v over the keys that `tokens.may_attend` allows, the softmax in float32 or more.

  Rows that may attend to nothing are exactly zero, as in deepmind-research `perceiver/perceiver.py`. The width of a
  value is free of the width of a key.

  Args:
    q, k, v: head-major operands.
    query_time, key_time: both or neither.
    key_valid: False = padding, whose keys and values may hold anything, as may those that no query's time allows.
    chunk_size: None = dense; otherwise that many keys at a time, with equal outputs and gradients.
  """
  if q.shape[-1] != k.shape[-1] or k.shape[:3] != v.shape[:3] or q.shape[:2] != k.shape[:2]:
    raise ValueError(f'attend needs q [b h i k], k [b h j k], v [b h j v]; got {q.shape}, {k.shape}, {v.shape}.')
  if chunk_size is None:
    rule = _Rule(query_time, key_time, key_valid)
    if (allowed := rule()) is not None:
      seen = allowed.any(axis=2)[..., None]
      k, v = (jnp.where(seen, array, jnp.zeros((), array.dtype)) for array in (k, v))
    output = _dense(q, k, v, rule)
  else:
    values = rearrange(jnp.concatenate([k, v], axis=-1), 'b h j c -> b j h c')
    tokens = Tokens(values=values, time=key_time, valid=key_valid)
    stream = KeyStream(project=_SplitKeysAndValues(k.shape[-1]), params=(), tokens=tokens)
    output = _streamed(q, (stream,), _Rule(query_time, key_time, key_valid), chunk_size, (stream,))
  return output.astype(v.dtype)


class _Rule(NamedTuple):
  """Which pairs are allowed, for some of the queries."""

  query_time: Int[Array, 'b i'] | None
  key_time: Int[Array, 'b j'] | None
  key_valid: Bool[Array, 'b j'] | None

  def __call__(self, queries: Chosen = slice(None)) -> Bool[Array, 'b 1 #i j'] | None:
    query_time = None if self.query_time is None else self.query_time[:, queries]
    return allowed_pairs(query_time, self.key_time, self.key_valid)


@dataclasses.dataclass(frozen=True)
class _SplitKeysAndValues:
  qk_channels: int

  def __call__(self, params: tuple[()], chunk: Tokens) -> tuple[Array, Array]:
    both = rearrange(chunk.values, 'b j h c -> b h j c')
    return both[..., : self.qk_channels], both[..., self.qk_channels :]


def _dense(
  q: Array, k: Array, v: Array, rule: _Rule, shown: Callable[[], Array] | None = None
) -> Float[Array, 'b h i v']:
  """`shown` makes the keys of a map, which has logits of what no query may read too."""
  logits = scaled_logits(q, k)
  state = PartialSoftmax.empty(q.shape[:3], v.shape[-1], logits.dtype).fold(logits, rule(), v)

  def recorded(heads: Chosen, queries: Chosen) -> Float[Array, 'b h i j']:
    return (logits if shown is None else scaled_logits(q, shown()))[:, heads][:, :, queries]

  record_weights(state.log_sum_exp(), recorded, rule)
  return state.output()


def _streamed(
  q: Array, streams: tuple[KeyStream, ...], rule: _Rule, chunk_size: int, shown: tuple[KeyStream, ...]
) -> Float[Array, 'b h i v']:
  output, log_sum_exp = streamed_attend(q, streams, rule.query_time, chunk_size)

  def logits(heads: Chosen, queries: Chosen) -> Float[Array, 'b h i j']:
    return streamed_logits(q[:, heads][:, :, queries], shown, chunk_size, heads)

  record_weights(log_sum_exp, logits, rule)
  return output


DENSE_LOGITS = {'cpu': 2**20, 'gpu': 2**26, 'tpu': 2**26}
"""Up to this many logits attention is dense. On CPU a chunk that stays in the cache is faster from 4 MiB on."""

CHUNK_LOGITS = {'cpu': 2**19, 'gpu': 2**24, 'tpu': 2**24}
"""The logits of one streamed chunk; on CPU 256 tokens for 256 latents of 8 heads."""


def choose_chunk_size(num_rows: int, num_keys: int, platform: str | None = None) -> int | None:
  """Keys a chunk for `num_rows` = batch x heads x queries, or None for the dense path."""
  platform = platform or jax.default_backend()
  if num_rows * num_keys <= DENSE_LOGITS.get(platform, DENSE_LOGITS['gpu']):
    return None
  logits = CHUNK_LOGITS.get(platform, CHUNK_LOGITS['gpu'])
  power_of_two = 2 ** (max(logits // num_rows, 1).bit_length() - 1)
  return min(max(power_of_two, 128), 4096)


def read(
  q: Float[Array, 'b h i k'],
  sources: Sequence[tuple[Tokens, KeyValueReader]],
  *,
  query_time: Int[Array, 'b i'] | None,
  chunk_size: int | None = None,
) -> Float[Array, 'b h i v']:
  """Attention of ready queries over raw tokens of any number of sources, in one softmax.

  Args:
    sources: tokens, each with the reader that makes their keys and values, a chunk at a time where that pays.
    chunk_size: None = chosen from the shapes; a number forces chunks of that many tokens.
  """
  check_counts({'chunk_size': chunk_size})
  tokens = [source for source, _ in sources]
  rule = _Rule(query_time, joined_times(tokens), joined_validity(tokens))
  num_keys = sum(source.num_tokens for source in tokens)
  chunk_size = chunk_size or choose_chunk_size(q.shape[0] * q.shape[1] * q.shape[2], num_keys)
  seen = sources
  if rule.query_time is not None and rule.key_time is not None:
    last = query_time.max(axis=1, keepdims=True)
    seen = [(readable(source, last), reader) for source, reader in sources]
  if chunk_size is None:
    return _dense(q, *keys_and_values(seen), rule, lambda: keys_and_values(sources)[0])
  streams, shown = (tuple(key_stream(source, reader) for source, reader in each) for each in (seen, sources))
  return _streamed(q, streams, rule, chunk_size, shown)
