"""The unified model one timestep at a time: only the S new latents are computed, and nothing cached ever changes.

The encoder's cache is an unfinished softmax, maximum, numerator and denominator, because all timesteps ask the same
question; the processor's is keys and values. Shapes are fixed, and `generate` is one compiled loop. While a window has
room, what comes out equals a recomputation; when it is full, its newest timesteps are read again from scratch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from perceiver_lib.attention.attend import KeyValueReader, attend
from perceiver_lib.attention.block_causal import self_attend
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.streamed import PartialSoftmax, cleaned, scaled_logits
from perceiver_lib.attention.timesteps import known, nothing, summed, timestep_major, timestep_partials
from perceiver_lib.blocks import SelfAttention
from perceiver_lib.decoder import IdentityDecoderConfig
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepWindow:
  """How much a generation remembers: when `max_timesteps` are cached, the newest `num_kept` are read again as 0, 1, ...

  Few kept timesteps mean few starts and a short memory after each.
  """

  max_timesteps: int
  num_kept: int

  def __post_init__(self):
    if not 1 <= self.num_kept <= self.max_timesteps:
      raise ValueError(f'A window needs 1 <= num_kept <= max_timesteps; got {self.num_kept}, {self.max_timesteps}.')


def generate(
  model: UnifiedPerceiver,
  history: Num[Array, 'b t *n'],
  *,
  num_steps: int,
  window: TimestepWindow,
  choose: Callable[[Any, Array], Num[Array, 'b *n']],
  tokens_of: Callable[[Num[Array, 'b *n']], Inputs],
  queries: Inputs | None = None,
  source: Inputs | None = None,
  seed: int = 0,
) -> Num[Array, 'b u *n']:
  """New timesteps after a history, one after another, in one compiled loop; a timestep is a token, a frame, anything.

  Args:
    model: with learned latents.
    history: raw values of the known timesteps, at least one, such as ids `[b, t]` or frames `[b, t, y, x, c]`.
    num_steps: new timesteps.
    window: how much is remembered.
    choose: `(outputs, key) -> values` of the next timestep. Outputs are those of the queries at the newest timestep,
      or, with an identity decoder, of its latents, `[b, s, e]`.
    tokens_of: values of one timestep -> its tokens, by modality where the model's are, without a time.
    queries: asked at every timestep; without a time.
    source: always visible tokens, with SOURCE_TIME.
    seed: of the keys that `choose` gets.

  Returns:
    The new values `[b, num_steps, ...]`.
  """
  if history.shape[1] < 1 or num_steps < 1:
    raise ValueError(f'Generation needs at least one known and one new timestep; got {history.shape[1]}, {num_steps}.')
  graphdef, params = nnx.split(model)
  functions = (choose, tokens_of)
  return _generate(params, history, queries, source, seed, graphdef, num_steps, window, functions)


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _generate(params, history, queries, source, seed, graphdef, num_steps: int, window: TimestepWindow, functions):
  choose, tokens_of = functions
  model, num_known, key = nnx.merge(graphdef, params), history.shape[1], jax.random.key(seed)
  s = model.config.latents.num_latents

  def read_again(values: Array) -> tuple[UnifiedCache, Array]:
    count = values.shape[1]
    inputs = _joined(source, _in_time(tokens_of, values))
    cache, latents = start(model, inputs, num_timesteps=count, max_timesteps=window.max_timesteps)
    return cache, latents.values[:, -s:]

  def outputs(cache: UnifiedCache, newest: Array) -> Any:
    time = cache.next_step - 1
    if isinstance(model.config.decoder, IdentityDecoderConfig):
      return model.decode(Tokens(values=newest)).values
    asked = jax.tree.map(lambda tokens: _at(tokens, time), queries, is_leaf=lambda x: isinstance(x, Tokens))
    return model.decode(latents_so_far(model, cache), asked)

  def choose_next(cache: UnifiedCache, newest: Array, values: Array, index: Array) -> Array:
    chosen = choose(outputs(cache, newest), jax.random.fold_in(key, index))
    return _put(values, chosen[:, None].astype(values.dtype), num_known + index)

  def grow(index: Array, carry: tuple[UnifiedCache, Array]) -> tuple[UnifiedCache, Array]:
    cache, values = carry

    def refill() -> tuple[UnifiedCache, Array]:
      first = num_known + index - window.num_kept
      return read_again(jax.lax.dynamic_slice_in_dim(values, first, window.num_kept, axis=1))

    def append() -> tuple[UnifiedCache, Array]:
      newest = jax.lax.dynamic_index_in_dim(values, num_known + index - 1, axis=1, keepdims=False)
      grown, latents = step(model, cache, tokens_of(newest))
      return grown, latents.values

    cache, newest = jax.lax.cond(cache.next_step == window.max_timesteps, refill, append)
    return cache, choose_next(cache, newest, values, index)

  values = jnp.concatenate(
    [history, jnp.zeros((history.shape[0], num_steps, *history.shape[2:]), history.dtype)], axis=1
  )
  first = num_known if num_known <= window.max_timesteps else window.num_kept
  cache, newest = read_again(history[:, num_known - first :])
  values = choose_next(cache, newest, values, jnp.int32(0))
  _, values = jax.lax.fori_loop(1, num_steps, grow, (cache, values))
  return values[:, num_known:]


def _at(tokens: Tokens, time: Array) -> Tokens:
  return dataclasses.replace(tokens, time=jnp.broadcast_to(time, (tokens.batch_size, tokens.num_tokens)))


def _in_time(tokens_of: Callable[[Array], Inputs], values: Array) -> Inputs:
  """Tokens of timesteps 0, 1, ..., from their values `[b, t, ...]`."""
  steps = jax.vmap(tokens_of, in_axes=1, out_axes=1)(values)

  def flat(tokens: Tokens) -> Tokens:
    b, t, n = tokens.values.shape[:3]
    tokens = jax.tree.map(lambda x: rearrange(x, 'b t n ... -> b (t n) ...'), tokens)
    return dataclasses.replace(tokens, time=repeat(jnp.arange(t, dtype=jnp.int32), 't -> b (t n)', b=b, n=n))

  return jax.tree.map(flat, steps, is_leaf=lambda x: isinstance(x, Tokens))


def _joined(first: Inputs | None, second: Inputs) -> Inputs:
  """Tokens of both, one behind the other where they are of the same modality."""
  if first is None:
    return second
  if isinstance(first, Tokens) != isinstance(second, Tokens):
    raise ValueError('A source and timesteps must both be tokens by modality, or neither may.')
  if isinstance(first, Mapping):
    names = sorted({*first, *second})
    both = {name: [part[name] for part in (first, second) if name in part] for name in names}
    return {name: parts[0] if len(parts) == 1 else _joined(*parts) for name, parts in both.items()}
  if (first.position is None) != (second.position is None):
    raise ValueError('Source and timesteps of one modality must both have positions, or neither may.')

  def whole(tokens: Tokens) -> Tokens:
    shape = (tokens.batch_size, tokens.num_tokens)
    position = tokens.position
    position = None if position is None else jnp.broadcast_to(position, (*shape, position.shape[-1]))
    valid = jnp.ones(shape, bool) if tokens.valid is None else tokens.valid
    return dataclasses.replace(tokens, position=position, valid=valid)

  return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), whole(first), whole(second))
