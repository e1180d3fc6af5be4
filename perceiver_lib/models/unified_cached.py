"""The unified model one timestep at a time: only the S new latents are computed, and nothing cached ever changes.

The encoder's cache is an unfinished softmax, maximum, numerator and denominator, because all timesteps ask the same
question; the processor's is keys and values. Shapes are fixed, and `generate` is one compiled loop. While a window has
room, what comes out equals a recomputation; when it is full, its newest timesteps are read again from scratch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from perceiver_lib.attention.attend import KeyValueReader, attend
from perceiver_lib.attention.block_causal import self_attend
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.softmax import PartialSoftmax, scaled_logits
from perceiver_lib.attention.streamed import cleaned
from perceiver_lib.attention.timesteps import known, nothing, summed, timestep_major, timestep_partials
from perceiver_lib.blocks import SelfAttention
from perceiver_lib.models.unified import Inputs, LearnedLatents, UnifiedPerceiver
from perceiver_lib.tokens import Tokens, pytree_dataclass

KeysAndValues = tuple[Float[Array, 'r n k'], Float[Array, 'r n v']]
"""Examples and heads are one axis, r = b h: with two, XLA on CPU copies the whole cache at every step."""


@pytree_dataclass()
class UnifiedCache:
  """What is kept of a source and of the timesteps 0 .. t-1. Arrays lead with the examples, as beam search needs.

  Attributes:
    source: what the S latents read of the source, `[b, 1, h, s]`.
    steps: what they read of the timesteps, `[b, w, h, s]`: of each in the encoder window, the newest last, or of all
      of them together (w = 1).
    layers: keys and values of every processor layer, with room for all timesteps of the window.
    latents: `[b, n, d]` after the processor, which queries read.
    next_step: t.
  """

  source: PartialSoftmax
  steps: PartialSoftmax
  layers: tuple[KeysAndValues, ...]
  latents: Float[Array, 'b n d']
  next_step: Int[Array, '']


def start(
  model: UnifiedPerceiver, inputs: Inputs, *, num_timesteps: int, max_timesteps: int, chunk_size: int | None = None
) -> tuple[UnifiedCache, Tokens]:
  """Reads a source and the first timesteps at once.

  Args:
    model: with learned latents.
    inputs: raw tokens with SOURCE_TIME or a timestep below `num_timesteps`; modalities may be missing.
    num_timesteps: already known, 0 where there is nothing but a source.
    max_timesteps: the cache's room.
    chunk_size: input tokens read at a time; None = chosen from the shapes.

  Returns:
    The cache, and the latents `[b, t * s, d]` of the known timesteps.
  """
  config = model.config.latents
  if not isinstance(config, LearnedLatents):
    raise ValueError('Latents made of inputs generate by `PerceiverAR`; this cache is for learned latents.')
  most = max_timesteps if model.timesteps is None else config.num_timesteps
  if not 0 <= num_timesteps <= max_timesteps <= most:
    raise ValueError(
      f'A cache needs 0 <= num_timesteps <= max_timesteps <= {most}, the timesteps of this model; '
      f'got {num_timesteps} and {max_timesteps}.'
    )
  sources, s = _sources(model, inputs), config.num_latents
  q = model.question(sources[0][0].batch_size)
  settings = {'num_timesteps': num_timesteps, 'window': config.encoder_window}
  partials = timestep_partials(q, sources, **settings, chunk_size=chunk_size)
  source = jax.tree.map(lambda x: x[:, :1], partials)
  steps = jax.tree.map(lambda empty, x: jnp.concatenate([empty, x[:, 1:]], axis=1), nothing(source), partials)
  if config.encoder_window is None:
    steps = jax.tree.map(lambda x: x[:, None], summed(steps))
  else:
    steps = jax.tree.map(lambda x: x[:, -config.encoder_window :], steps)
  heads = timestep_major(known(partials, **settings)).output()
  latents = model.answer(heads, jnp.arange(num_timesteps, dtype=jnp.int32))
  layers, room = [], (max_timesteps - num_timesteps) * s
  for index, (layer, view) in enumerate(_applied_layers(model)):
    pair = _keys_and_values(layer, dataclasses.replace(latents, values=layer.norm(latents.values)))
    layers.append(tuple(jnp.pad(_rows(array), ((0, 0), (0, room), (0, 0))) for array in pair))
    with named('processor', index):
      latents = self_attend(layer, latents, view, s, None) if num_timesteps else latents
  cache = UnifiedCache(
    source=source,
    steps=steps,
    layers=tuple(layers),
    latents=jnp.pad(latents.values, ((0, 0), (0, room), (0, 0))),
    next_step=jnp.int32(num_timesteps),
  )
  return cache, latents


def step(model: UnifiedPerceiver, cache: UnifiedCache, inputs: Inputs) -> tuple[UnifiedCache, Tokens]:
  """Adds one timestep: its tokens are read once, and its S latents see all that is cached.

  Args:
    model: the one that made the cache.
    cache: with room for a timestep.
    inputs: raw tokens of the timestep, whose own times do not count; modalities may be missing.

  Returns:
    The cache, and the new latents `[b, s, d]`.
  """
  time, s = cache.next_step, model.config.latents.num_latents
  q = model.question(cache.latents.shape[0])
  new = PartialSoftmax.empty(q.shape[:3], cache.source.numerator.shape[-1])
  for tokens, reader in _sources(model, inputs):
    k, v = reader(cleaned(tokens))
    new = new.fold(scaled_logits(q, k), None if tokens.valid is None else tokens.valid[:, None, None], v)
  steps = jax.tree.map(lambda x, part: jnp.concatenate([x, part[:, None]], axis=1), cache.steps, new)
  if model.config.latents.encoder_window is None:
    steps = jax.tree.map(lambda x: x[:, None], summed(steps))
  else:
    steps = jax.tree.map(lambda x: x[:, 1:], steps)
  read = summed(jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), cache.source, steps))
  latents, layers = model.answer(read.output(), time[None]), []
  for index, ((layer, view), (keys, values)) in enumerate(zip(_applied_layers(model), cache.layers, strict=True)):
    normed = dataclasses.replace(latents, values=layer.norm(latents.values))
    k, v = _keys_and_values(layer, normed)
    keys, values = _put(keys, _rows(k), time * s), _put(values, _rows(v), time * s)
    layers.append((keys, values))
    q = layer.attention.project_queries(normed.values, normed.position)
    with named('processor', index):
      heads = _attend_cached(q, k, v, (keys, values), view, time)
    latents = layer.finish(latents, heads, rngs=None)
  cache = UnifiedCache(
    source=cache.source,
    steps=steps,
    layers=tuple(layers),
    latents=_put(cache.latents, latents.values, time * s),
    next_step=time + 1,
  )
  return cache, latents


def latents_so_far(model: UnifiedPerceiver, cache: UnifiedCache) -> Tokens:
  """All cached latents, for `model.decode`."""
  b, n, s = *cache.latents.shape[:2], model.config.latents.num_latents
  time = jnp.arange(n, dtype=jnp.int32) // s
  return Tokens(
    values=cache.latents,
    position=time[None, :, None],
    time=jnp.broadcast_to(time, (b, n)),
    valid=jnp.broadcast_to(time < cache.next_step, (b, n)),
  )


def _sources(model: UnifiedPerceiver, inputs: Inputs) -> list[tuple[Tokens, KeyValueReader]]:
  """As `model.sources`, for some of the modalities."""
  if isinstance(inputs, Tokens):
    return model.sources(inputs)
  adapters, cross_attend = model.input_adapter, model.cross_attends[0]
  if not isinstance(adapters, Mapping) or not set(inputs) <= set(adapters):
    names = sorted(adapters) if isinstance(adapters, Mapping) else []
    raise ValueError(f'Tokens must be of the modalities {names}; got {sorted(inputs)}.')
  return [
    (inputs[name].checked(name), KeyValueReader(adapters[name], cross_attend.input_norm, cross_attend.attention))
    for name in sorted(inputs)
  ]


def _applied_layers(model: UnifiedPerceiver) -> Iterator[tuple[SelfAttention, str]]:
  block = model.blocks[0]
  for _ in range(model.config.num_blocks):
    for index, layer in enumerate(block.layers):
      yield layer, block.views[index % len(block.views)]


def _keys_and_values(layer: SelfAttention, normed: Tokens) -> tuple[Array, Array]:
  return KeyValueReader(None, None, layer.attention)(normed)


def _rows(array: Float[Array, 'b h n k']) -> Float[Array, 'r n k']:
  return rearrange(array, 'b h n k -> (b h) n k')


def _put(array: Array, entry: Array, place: Array) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(array, entry, place, axis=1)


def _attend_cached(q: Array, k: Array, v: Array, cached: KeysAndValues, view: str, time: Array) -> Array:
  """The newest timestep's latents over the cache, as `block_causal.self_attend` looks at it."""
  if view == 'step':
    return attend(q, k, v)
  h, s = q.shape[1:3]
  keys, values = (rearrange(array, '(b h) n k -> b h n k', h=h) for array in cached)
  if view == 'slot':
    q = rearrange(q, 'b h s k -> (b s) h 1 k')
    keys, values = (rearrange(array, 'b h (t s) k -> (b s) h t k', s=s) for array in (keys, values))
  done = time + 1 if view == 'slot' else (time + 1) * s
  valid = jnp.broadcast_to(jnp.arange(keys.shape[2]) < done, (keys.shape[0], keys.shape[2]))
  heads = attend(q, keys, values, key_valid=valid)
  return rearrange(heads, '(b s) h 1 v -> b h s v', s=s) if view == 'slot' else heads
