"""Caches of keys and values at fixed shapes, and the window that says when one is full."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, Shaped

from perceiver_lib.attention.capture import record_weights
from perceiver_lib.attention.products import product
from perceiver_lib.attention.softmax import MASKED_LOGIT
from perceiver_lib.settings import check_counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentWindow:
  """How much a generation remembers, and when it starts afresh.

  A start reads the newest `keep` tokens with the last `num_start_latents` of them as latents. Every further token
  is one more latent, until there are `num_latents`; then the next start drops the oldest tokens and the oldest latents,
  and positions that the model counts itself begin at 0 again. Few start latents mean few starts and little depth behind
  the first tokens; as many as `num_latents` mean a start, hence no use of the cache, for every token.

  Attributes:
    context_length: tokens that are ever attended to.
    num_latents: most latents.
    num_start_latents: latents of a start; perceiver-ar takes half.
  """

  context_length: int
  num_latents: int
  num_start_latents: int

  def __post_init__(self):
    check_counts(self, 'context_length', 'num_latents', 'num_start_latents')
    if not 1 <= self.num_start_latents <= self.num_latents <= self.context_length:
      raise ValueError(
        'A window needs 1 <= num_start_latents <= num_latents <= context_length; got '
        f'{self.num_start_latents}, {self.num_latents} and {self.context_length}.'
      )

  @property
  def room(self) -> int:
    """Tokens that can be appended after a start."""
    return self.num_latents - self.num_start_latents

  @property
  def keep(self) -> int:
    """Tokens that a start reads at most."""
    return self.context_length - self.room


KeysAndValues = tuple[Float[Array, '_r _j _k'], Float[Array, '_r _j _v']]
"""Examples and heads are one axis, r = b h: with two, XLA on CPU copies the whole cache for every token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCache:
  """Keys and values of every attention, with room for tokens at the end.

  Attributes:
    layers: `KeysAndValues` of the cross-attend first, then of the self-attends.
    context_valid, latent_valid: which columns of the first and of all other layers hold something.
    num_steps: tokens appended since the start.
    position: of the next token, as the model counts.
    room: tokens that fit in all.
  """

  layers: tuple[Any, ...]
  context_valid: Bool[Array, 'b j']
  latent_valid: Bool[Array, 'b n']
  num_steps: Int[Array, '']
  position: Int[Array, 'b 1']
  room: int = dataclasses.field(metadata={'static': True})

  def extended(self, layer: int, k: Float[Array, 'b h 1 k'], v: Float[Array, 'b h 1 v']) -> KeysAndValues:
    """A layer's keys and values with those of the next token in their place."""
    keys, values = self.layers[layer]
    return self.appended(keys, rows(k)), self.appended(values, rows(v))

  def appended(self, array: Array, entry: Array) -> Array:
    """Writes `[r, 1, ...]` into the next column of `[r, j, ...]`."""
    return put(array, entry, array.shape[1] - self.room + self.num_steps)


def put(array: Shaped[Array, 'r j *k'], entry: Shaped[Array, 'r i *k'], column: Int[Array, '']) -> Array:
  """The array with an entry in place of what it has from this column on."""
  return jax.lax.dynamic_update_slice_in_dim(array, entry, column, axis=1)


def rows(array: Float[Array, 'b h j k']) -> Float[Array, 'r j k']:
  return rearrange(array, 'b h j k -> (b h) j k')


def by_heads(array: Float[Array, 'r *j'], num_heads: int) -> Float[Array, 'b h *j']:
  return rearrange(array, '(b h) ... -> b h ...', h=num_heads)


def with_room(k: Float[Array, 'b h j k'], v: Float[Array, 'b h j v'], room: int) -> KeysAndValues:
  """Keys and values with empty columns at the end."""
  pad = ((0, 0), (0, room), (0, 0))
  return jnp.pad(rows(k), pad), jnp.pad(rows(v), pad)


def attend_cache(
  q: Float[Array, 'b h 1 k'], cached: KeysAndValues, valid: Bool[Array, 'b j']
) -> Float[Array, 'b h 1 v']:
  """Attention of the newest token over a cache. Everything cached is in its past, and nothing there is NaN."""
  k, v = cached
  logits = product('rik,rjk->rij', rows(q), k) * (q.shape[-1] ** -0.5)
  allowed = repeat(valid, 'b j -> (b h) 1 j', h=q.shape[1])
  masked = jnp.where(allowed, logits, MASKED_LOGIT)
  heads = product('rij,rjv->riv', jax.nn.softmax(masked, axis=-1), v)
  by_head, log_sum_exp = (by_heads(array, q.shape[1]) for array in (logits, jax.nn.logsumexp(masked, axis=-1)))
  record_weights(log_sum_exp, lambda heads, queries: by_head[:, heads][:, :, queries], lambda _: valid[:, None, None])
  return by_heads(heads, q.shape[1])
