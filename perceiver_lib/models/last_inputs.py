"""Latents that sit on inputs: which inputs those are, and how such latents read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from perceiver_lib.attention.attend import read
from perceiver_lib.attention.projections import KeyValueReader
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


def on_inputs(model: nnx.Module, raw: Tokens) -> tuple[Tokens, Tokens]:
  """The inputs that latents sit on as channels `[b, n, c]`, and projected to latents `[b, n, d]`."""
  embedded = dataclasses.replace(raw, values=model.input_adapter(raw))
  projection = model.latent_projection
  return embedded, embedded if projection is None else dataclasses.replace(raw, values=projection(embedded.values))


def read_inputs(
  model: nnx.Module,
  inputs: Tokens,
  raw: Tokens,
  is_latent: Bool[Array, 'b m'],
  *,
  key_norm: str,
  chunk_size: int | None,
  rngs: nnx.Rngs | None,
) -> Tokens:
  """The one cross-attend of a `PerceiverAR`, or of a `UnifiedPerceiver` of the same kind.

  Args:
    inputs: all of them, with a time.
    raw: those that the latents sit on.
    is_latent: which of the inputs they are.
    key_norm: see `PerceiverARConfig`.
    chunk_size, rngs: see `models`.
  """
  cross_attend = model.cross_attends[0]
  embedded, latents = on_inputs(model, raw)
  own_keys = key_norm == 'query_norm'
  if own_keys:
    inputs = dataclasses.replace(inputs, valid=validity(inputs) & ~is_latent)
  sources = cross_attend.sources(inputs, model.input_adapter)
  if own_keys:
    sources += [(embedded, KeyValueReader(None, cross_attend.query_norm, cross_attend.attention))]
  heads = read(cross_attend.questions(latents), sources, query_time=latents.time, chunk_size=chunk_size)
  return cross_attend.finish(latents, heads, rngs=rngs)
