"""The unified model one timestep at a time: only the S new latents are computed, and nothing cached ever changes.

The encoder's cache is an unfinished softmax, maximum, numerator and denominator, because all timesteps ask the same
question; the processor's is keys and values. Shapes are fixed, and `generate` is one compiled loop. While a window has
room, what comes out equals a recomputation; when it is full, its newest timesteps are read again from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from perceiver_lib.attention.attend import attend
from perceiver_lib.attention.caching import KeysAndValues, by_heads, put, rows, with_room
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.projections import KeyValueReader
from perceiver_lib.attention.softmax import PartialSoftmax, scaled_logits
from perceiver_lib.attention.streamed import cleaned
from perceiver_lib.attention.timesteps import known, timestep_major, timestep_partials
from perceiver_lib.blocks import SelfAttention
from perceiver_lib.models.unified import Inputs, LearnedLatents, UnifiedPerceiver
from perceiver_lib.tokens import Tokens, pytree_dataclass


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
    chunk_size: see `models`.

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
  source = partials.groups(slice(1))
  steps = _remembered(source.emptied().beside(partials.groups(slice(1, None))), config.encoder_window)
  heads = timestep_major(known(partials, window=config.encoder_window)).output()
  latents = model.answer(heads, jnp.arange(num_timesteps, dtype=jnp.int32))
  layers, room = [], (max_timesteps - num_timesteps) * s
  for index, layer in enumerate(_applied_layers(model)):
    _, k, v = layer.projected(latents)
    layers.append(with_room(k, v, room))
    with named('processor', index):
      latents = layer(latents, num_latents_per_timestep=s) if num_timesteps else latents
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
  new = PartialSoftmax.empty(q.shape[:3], cache.source.numerator.shape[-1], cache.source.numerator.dtype)
  for tokens, reader in _sources(model, inputs):
    k, v = reader(cleaned(tokens))
    new = new.fold(scaled_logits(q, k), None if tokens.valid is None else tokens.valid[:, None, None], v)
  steps = _remembered(cache.steps.beside(new.as_group()), model.config.latents.encoder_window)
  latents, layers = model.answer(cache.source.beside(steps).total().output(), time[None]), []
  valid = jnp.broadcast_to(jnp.arange(cache.latents.shape[1]) < (time + 1) * s, cache.latents.shape[:2])
  for index, (layer, (keys, values)) in enumerate(zip(_applied_layers(model), cache.layers, strict=True)):
    q, k, v = layer.projected(latents)
    layers.append((put(keys, rows(k), time * s), put(values, rows(v), time * s)))
    with named('processor', index):
      heads = attend(q, *(by_heads(array, q.shape[1]) for array in layers[-1]), key_valid=valid)
    latents = layer.finish(latents, heads, rngs=None)
  cache = UnifiedCache(
    source=cache.source,
    steps=steps,
    layers=tuple(layers),
    latents=put(cache.latents, latents.values, time * s),
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
  """The inputs with their readers, for some of the modalities."""
  adapters = model.input_adapter
  if isinstance(inputs, Mapping):
    names = sorted(adapters) if isinstance(adapters, Mapping) else []
    if not set(inputs) <= set(names):
      raise ValueError(f'Tokens must be of the modalities {names}; got {sorted(inputs)}.')
    adapters = {name: adapters[name] for name in inputs}
  return model.cross_attends[0].sources(inputs, adapters)


def _remembered(steps: PartialSoftmax, window: int | None) -> PartialSoftmax:
  """What later timesteps need of what was read of the timesteps."""
  return steps.total().as_group() if window is None else steps.groups(slice(-window, None))


def _applied_layers(model: UnifiedPerceiver) -> list[SelfAttention]:
  return list(model.blocks[0].layers) * model.config.num_blocks
