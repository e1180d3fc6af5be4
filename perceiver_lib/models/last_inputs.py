"""Which inputs become latents."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from perceiver_lib.attention.streamed import cleaned
from perceiver_lib.tokens import SOURCE_TIME, Tokens


def validity(tokens: Tokens) -> Bool[Array, 'b m']:
  """Which tokens exist, written out."""
  return jnp.ones(tokens.values.shape[:2], bool) if tokens.valid is None else tokens.valid


def last_valid(valid: Bool[Array, 'b m'], num_latents: int) -> Int[Array, 'b n']:
  """Indices of the last `num_latents` valid tokens in order; -1, on the left, where a row has fewer.

  Valid # # . # # with three latents gives 1 3 4; . . # # . gives -1 2 3.
  """
  b, m = valid.shape
  slot = num_latents - 1 - rank_from_end(valid)
  slot = jnp.where(valid & (slot >= 0), slot, num_latents)
  index = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32), (b, m))
  return jnp.full((b, num_latents), -1, jnp.int32).at[jnp.arange(b)[:, None], slot].set(index, mode='drop')


def rank_from_end(valid: Bool[Array, 'b m']) -> Int[Array, 'b m']:
  """Valid tokens behind each token."""
  counts = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
  return counts[:, -1:] - counts


def gathered(array: Array, index: Int[Array, 'b n']) -> Array:
  """Entries of `[b or 1, m, ...]` at indices of their row; an index of -1 gives entry 0."""
  return jax.vmap(lambda row, at: row[at], in_axes=(None if array.shape[0] == 1 else 0, 0))(
    array[0] if array.shape[0] == 1 else array, jnp.maximum(index, 0)
  )


def latest(inputs: Tokens, num_latents: int) -> tuple[Tokens, Bool[Array, 'b m']]:
  """The `num_latents` latest valid inputs in time order, source excluded, and which inputs they are `[b, m]`.

  Inputs of one timestep keep their order. Where a row has fewer, the first latents are not valid.
  """
  b, m = inputs.values.shape[:2]
  candidate = validity(inputs) & (inputs.time != SOURCE_TIME)
  order = jnp.argsort(jnp.where(candidate, inputs.time, SOURCE_TIME), axis=1, stable=True).astype(jnp.int32)
  place = last_valid(jnp.take_along_axis(candidate, order, axis=1), num_latents)
  valid = place >= 0
  index = jnp.where(valid, jnp.take_along_axis(order, jnp.maximum(place, 0), axis=1), -1)
  raw = Tokens(
    values=gathered(inputs.values, index),
    position=None if inputs.position is None else gathered(inputs.position, index),
    time=jnp.where(valid, gathered(inputs.time, index), SOURCE_TIME),
    valid=valid,
  )
  is_latent = jnp.zeros((b, m), bool).at[jnp.arange(b)[:, None], jnp.where(valid, index, m)].set(True, mode='drop')
  return cleaned(raw), is_latent
