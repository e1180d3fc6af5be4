"""Perceiver AR one token at a time: the contract of `perceiver_lib.generation.stream.CachedModel`.

The newest token is one new latent. It reads the cached context and the cached latents before it, and nothing that is
cached ever changes, because everything is causal.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.attention.attend import attend, choose_chunk_size
from perceiver_lib.attention.caching import LatentWindow, TokenCache, attend_cache, with_room
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.projections import KeyValueReader
from perceiver_lib.attention.streamed import cleaned
from perceiver_lib.models.last_inputs import on_inputs, rank_from_end, validity
from perceiver_lib.tokens import Tokens


def start(
  model: nnx.Module, history: Tokens, window: LatentWindow, *, room: int
) -> tuple[TokenCache, Float[Array, 'b e']]:
  """Reads a history at once: `window.num_start_latents` latents, and a cache with room for `room` more tokens.

  Args:
    model: a `PerceiverAR`.
    history: raw tokens whose last column is valid in every row (padding on the left).
    window: how many latents to begin with.
    room: tokens that will be appended before the next start.

  Returns:
    The cache, and the logits of the token behind the history.
  """
  config, cross_attend = model.config, model.cross_attends[0]
  inputs = cleaned(model.in_time(history))
  valid = validity(inputs)
  raw = model.latent_inputs(inputs, window.num_start_latents)
  _, latents = on_inputs(model, raw)
  embedded = model.input_adapter(inputs)
  normed = cross_attend.input_norm(embedded)
  if config.key_norm == 'query_norm':
    is_latent = rank_from_end(valid) < window.num_start_latents
    normed = jnp.where(is_latent[..., None], cross_attend.query_norm(embedded), normed)
  context = KeyValueReader(None, None, cross_attend.attention)(dataclasses.replace(inputs, values=normed))
  cached = [with_room(*context, room)]
  with named('encoder', 'cross_attention', 0):
    heads = _attend(cross_attend.questions(latents), *context, latents, inputs.time, valid)
  latents = cross_attend.finish(latents, heads, rngs=None)
  for index, layer in enumerate(model.blocks[0].layers):
    q, k, v = layer.projected(latents)
    cached.append(with_room(k, v, room))
    with named('processor', index):
      heads = _attend(q, k, v, latents, latents.time, latents.valid)
    latents = layer.finish(latents, heads, rngs=None)
  cache = TokenCache(
    layers=tuple(cached),
    context_valid=jnp.pad(valid, ((0, 0), (0, room))),
    latent_valid=jnp.pad(latents.valid, ((0, 0), (0, room))),
    num_steps=jnp.int32(0),
    position=valid.sum(1, dtype=jnp.int32)[:, None],
    room=room,
  )
  return cache, model.logits(latents.values[:, -1:])[:, 0]


def _attend(q: Array, k: Array, v: Array, latents: Tokens, time: Array, valid: Array) -> Float[Array, 'b h n v']:
  chunk_size = choose_chunk_size(q.shape[0] * q.shape[1] * q.shape[2], k.shape[2])
  return attend(q, k, v, query_time=latents.time, key_time=time, key_valid=valid, chunk_size=chunk_size)


def step(model: nnx.Module, cache: TokenCache, tokens: Tokens) -> tuple[TokenCache, Float[Array, 'b e']]:
  """Appends one token to every row: one new latent, which reads the context and all latents before it.

  Args:
    model: a `PerceiverAR`.
    cache: with room for it.
    tokens: `[b, 1, ...]`; without a position, the cache's next one is taken.

  Returns:
    The cache, and the logits of the token behind this one.
  """
  cross_attend = model.cross_attends[0]
  if tokens.position is None:
    tokens = dataclasses.replace(tokens, position=cache.position[:, None])
  embedded, latents = on_inputs(model, tokens)
  exists = jnp.ones((tokens.batch_size, 1), bool)
  context_valid = cache.appended(cache.context_valid, exists)
  latent_valid = cache.appended(cache.latent_valid, exists)
  key_norm = cross_attend.input_norm if model.config.key_norm == 'shared' else cross_attend.query_norm
  reader = KeyValueReader(None, key_norm, cross_attend.attention)
  pair = cache.extended(0, *reader(embedded))
  with named('encoder', 'cross_attention', 0):
    heads = attend_cache(cross_attend.questions(latents), pair, context_valid)
  latents = cross_attend.finish(latents, heads, rngs=None)
  layers = [pair]
  for index, layer in enumerate(model.blocks[0].layers):
    q, k, v = layer.projected(latents)
    layers.append(cache.extended(index + 1, k, v))
    with named('processor', index):
      heads = attend_cache(q, layers[-1], latent_valid)
    latents = layer.finish(latents, heads, rngs=None)
  cache = dataclasses.replace(
    cache,
    layers=tuple(layers),
    context_valid=context_valid,
    latent_valid=latent_valid,
    num_steps=cache.num_steps + 1,
    position=cache.position + 1,
  )
  return cache, model.logits(latents.values)[:, 0]
