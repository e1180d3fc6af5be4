"""Generation by timestep: tokens, frames or anything else, one timestep after another in one compiled loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Int, Num

from perceiver_lib.attention.caching import put
from perceiver_lib.decoder import IdentityDecoderConfig
from perceiver_lib.models.unified import Inputs, UnifiedPerceiver
from perceiver_lib.models.unified_cached import UnifiedCache, latents_so_far, start, step
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepWindow:
  """How much a generation remembers: when `max_timesteps` are cached, the newest `num_kept` are read again as 0, 1, ...

  Few kept timesteps mean few starts and a short memory after each.
  """

  max_timesteps: int
  num_kept: int

  def __post_init__(self):
    check_counts(self, 'max_timesteps', 'num_kept')
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

  Raises:
    FloatingPointError: if what a timestep is chosen from is NaN; not inside an outer `jax.jit`.
  """
  if history.shape[1] < 1 or num_steps < 1:
    raise ValueError(f'Generation needs at least one known and one new timestep; got {history.shape[1]}, {num_steps}.')
  graphdef, params = nnx.split(model)
  functions = (choose, tokens_of)
  values, whole = _generate(params, history, queries, source, seed, graphdef, num_steps, window, functions)
  if not isinstance(whole, jax.core.Tracer) and whole < num_steps:
    raise FloatingPointError(
      f'The outputs of new timestep {whole} are NaN, so that nothing can be chosen: check the values of the history, '
      "and the model's weights."
    )
  return values


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _generate(params, history, queries, source, seed, graphdef, num_steps: int, window: TimestepWindow, functions):
  """The new values, and how many timesteps were chosen before the first NaN."""
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

  def choose_next(
    cache: UnifiedCache, newest: Array, values: Array, whole: Array, index: Array
  ) -> tuple[Array, Int[Array, '']]:
    found = outputs(cache, newest)
    is_nan = functools.reduce(jnp.logical_or, (jnp.isnan(leaf).any() for leaf in jax.tree.leaves(found)))
    chosen = choose(found, jax.random.fold_in(key, index))
    values = put(values, chosen[:, None].astype(values.dtype), num_known + index)
    return values, jnp.where(is_nan, jnp.minimum(whole, index), whole)

  def grow(index: Array, carry: tuple[UnifiedCache, Array, Array]) -> tuple[UnifiedCache, Array, Array]:
    cache, values, whole = carry

    def refill() -> tuple[UnifiedCache, Array]:
      first = num_known + index - window.num_kept
      return read_again(jax.lax.dynamic_slice_in_dim(values, first, window.num_kept, axis=1))

    def append() -> tuple[UnifiedCache, Array]:
      newest = jax.lax.dynamic_index_in_dim(values, num_known + index - 1, axis=1, keepdims=False)
      grown, latents = step(model, cache, tokens_of(newest))
      return grown, latents.values

    cache, newest = jax.lax.cond(cache.next_step == window.max_timesteps, refill, append)
    return cache, *choose_next(cache, newest, values, whole, index)

  values = jnp.concatenate(
    [history, jnp.zeros((history.shape[0], num_steps, *history.shape[2:]), history.dtype)], axis=1
  )
  first = num_known if num_known <= window.max_timesteps else window.num_kept
  cache, newest = read_again(history[:, num_known - first :])
  values, whole = choose_next(cache, newest, values, jnp.int32(num_steps), jnp.int32(0))
  _, values, whole = jax.lax.fori_loop(1, num_steps, grow, (cache, values, whole))
  return values[:, num_known:], whole


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
