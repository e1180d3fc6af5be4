"""Tokens one after another from a causal model: sampling, one compiled loop, and a stream of what it makes.

What a model must offer is small (`CachedModel`): read a history at once, and append one token. The loop knows nothing
else of it. A window bounds the cache (`attention.caching`): while it has room, cached logits are those of a
recomputation with the same start; when it is full, the history is read again from scratch, so that no cached value ever
holds what has slid out of the window.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.settings import check_counts, check_numbers
from perceiver_lib.tokens import AnyArray, Tokens, sum_type

NO_TOKEN = -1
"""Stands where the logits were NaN, until the host notices."""


@runtime_checkable
class CachedModel(Protocol):
  """What generation asks of a model; `PerceiverAR` documents the two methods."""

  def start(self, history: Tokens, window: LatentWindow, *, room: int) -> tuple[Any, Float[Array, 'b e']]: ...

  def step(self, cache: Any, tokens: Tokens) -> tuple[Any, Float[Array, 'b e']]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """How a token is drawn from logits: first the temperature, then `top_p`.

  Attributes:
    temperature: divides the logits; 0 = the likeliest token, always.
    top_p: the fewest likeliest tokens with at least this probability stay (nucleus, arXiv 1904.09751), None = all.
  """

  temperature: float = 1.0
  top_p: float | None = None

  def __post_init__(self):
    check_numbers(self, 'temperature', least=0)
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise ValueError(f'top_p must be a number in (0, 1]; got {self.top_p}.')

  def filtered(self, logits: Float[Array, 'b e']) -> Float[Array, 'b e']:
    """The logits that are drawn from; -inf for tokens that never are."""
    if self.temperature == 0:
      best = jnp.arange(logits.shape[-1])[None] == jnp.argmax(logits, axis=-1, keepdims=True)
      return jnp.where(best, logits, -jnp.inf)
    logits = logits.astype(sum_type(logits)) / self.temperature
    if self.top_p is None:
      return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    probability = jax.nn.softmax(ranked, axis=-1)
    ranked = jnp.where(jnp.cumsum(probability, axis=-1) - probability < self.top_p, ranked, -jnp.inf)
    return jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)

  def __call__(self, logits: Float[Array, 'b e'], keys: Array) -> Int[Array, 'b']:
    """One token a row, with one random key a row."""
    if self.temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, self.filtered(logits)).astype(jnp.int32)


GREEDY = Sampler(temperature=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """What is compiled into a generation."""

  window: LatentWindow
  room: int
  sampler: Sampler
  num_ids: int


class _Constants(NamedTuple):
  key: Array
  prompt_lengths: Int[Array, 'b']
  allowed: Bool[Array, 't e'] | None
  positions: Int[Array, 'b m p'] | None


class _State(NamedTuple):
  tokens: Int[Array, 'b m']
  valid: Bool[Array, 'b m']
  length: Int[Array, '']
  num_generated: Int[Array, '']
  cache: Any


def generate(
  model: CachedModel,
  prompts: Int[AnyArray, 'b m'],
  *,
  window: LatentWindow,
  num_tokens: int,
  valid: Bool[AnyArray, 'b m'] | None = None,
  sampler: Sampler = GREEDY,
  seed: int = 0,
  allowed: Bool[AnyArray, '_t e'] | None = None,
  positions: Int[AnyArray, '_b n p'] | None = None,
  num_ids: int = 1,
) -> Int[np.ndarray, 'b t']:
  """All new tokens at once; the arguments are those of `stream`."""
  settings = {'valid': valid, 'sampler': sampler, 'seed': seed, 'allowed': allowed, 'positions': positions}
  settings |= {'num_ids': num_ids, 'chunk_size': num_tokens}
  [tokens] = stream(model, prompts, window=window, num_tokens=num_tokens, **settings)
  return tokens


def stream(
  model: CachedModel,
  prompts: Int[AnyArray, 'b m'],
  *,
  window: LatentWindow,
  num_tokens: int,
  valid: Bool[AnyArray, 'b m'] | None = None,
  sampler: Sampler = GREEDY,
  seed: int = 0,
  allowed: Bool[AnyArray, '_t e'] | None = None,
  positions: Int[AnyArray, '_b n p'] | None = None,
  num_ids: int = 1,
  chunk_size: int = 16,
) -> Iterator[Int[np.ndarray, 'b t']]:
  """New tokens a few at a time, for a live display: the device works without Python for a whole chunk.

  Args:
    model: an `nnx.Module` that is a `CachedModel`.
    prompts: ids, padded on either side, with at least one valid token a row.
    window: how much is remembered, and when a start is due.
    num_tokens: new tokens.
    valid: which of the prompts' tokens exist; None = all.
    sampler: how a token is drawn.
    seed: of the draws. They depend on the seed, the row and the number of the token, and on nothing else.
    allowed: which ids may be drawn, the same at every new token (t = 1) or for each of them (t = num_tokens).
    positions: of every token of a row, prompt and continuation, in order; None = the model counts.
    num_ids: ids that each token carries, its own first and then those before it (`modalities.text_context`).
    chunk_size: most tokens a chunk.

  Yields:
    The next tokens `[b, up to chunk_size]`.

  Raises:
    ValueError: before the first token, for arguments that do not fit.
    FloatingPointError: if the logits of a token are NaN.
  """
  prompts = np.asarray(prompts)
  valid = np.ones(prompts.shape, bool) if valid is None else np.asarray(valid)
  whole = np.issubdtype(prompts.dtype, np.integer) and valid.dtype == bool
  if prompts.ndim != 2 or not whole or valid.shape != prompts.shape or not valid.any(axis=1).all() or not len(prompts):
    raise ValueError(
      'Prompts must be integer ids [batch, length], each with a valid token, and valid be bool; got '
      f'{prompts.dtype} {prompts.shape} and {valid.dtype} {valid.shape}.'
    )
  check_counts({'num_tokens': num_tokens, 'num_ids': num_ids, 'chunk_size': chunk_size})
  b = len(prompts)
  prompt_lengths = valid.sum(axis=1)
  if allowed is not None:
    allowed = np.asarray(allowed)
    if allowed.ndim != 2 or allowed.shape[0] not in (1, num_tokens) or not allowed.any(axis=1).all():
      raise ValueError(f'allowed must be [1 or {num_tokens}, vocabulary] with an id in each row; got {allowed.shape}.')
  if positions is not None:
    needed = int(prompt_lengths.max()) + num_tokens
    if positions.shape[0] not in (1, b) or positions.shape[1] < needed:
      raise ValueError(f'positions must be [{b} or 1, at least {needed}, axes]; got {positions.shape}.')
    positions = jnp.broadcast_to(jnp.asarray(positions), (b, *positions.shape[1:]))

  # Rows end together on the right, so that one column is the next token of all of them.
  order = np.argsort(valid, axis=1, kind='stable')
  length = int(prompt_lengths.max())
  columns = [np.take_along_axis(array, order, axis=1)[:, -length:] for array in (prompts, valid)]
  total = length + num_tokens
  width = min(length, window.keep)
  refill_width = min(window.keep, total - 1)
  spare = max(refill_width - length, 0) + num_ids - 1
  constants = _Constants(
    key=jax.random.key(seed),
    prompt_lengths=jnp.asarray(prompt_lengths, jnp.int32),
    allowed=None if allowed is None else jnp.asarray(allowed),
    positions=positions,
  )
  state = _State(
    tokens=jnp.asarray(np.pad(np.where(columns[1], columns[0], 0), ((0, 0), (spare, num_tokens))), jnp.int32),
    valid=jnp.asarray(np.pad(columns[1], ((0, 0), (spare, num_tokens)))),
    length=jnp.int32(spare + length),
    num_generated=jnp.int32(0),
    cache=None,
  )
  room = min(window.room, num_tokens - 1)
  plan = _Plan(window=window, room=room, sampler=sampler, num_ids=num_ids)
  return _chunks(model, plan, constants, state, num_tokens, chunk_size, (width, refill_width), spare + length)


def _chunks(model, plan, constants, state, num_tokens, chunk_size, widths, first) -> Iterator[np.ndarray]:
  graphdef, params = nnx.split(model)
  width, refill_width = widths
  done, room = 0, 0
  while done < num_tokens:
    before, target = done, min(done + chunk_size, num_tokens)
    while done < target:
      if room == 0:
        state = _start(params, constants, state._replace(cache=None), graphdef=graphdef, plan=plan, width=width)
        done, room, width = done + 1, plan.room, refill_width
      else:
        count = min(room, target - done)
        state = _advance(params, constants, state, jnp.int32(count), graphdef=graphdef, plan=plan)
        done, room = done + count, room - count
    tokens = jax.device_get(state.tokens)[:, first + before : first + done]
    if (row_and_place := np.argwhere(tokens == NO_TOKEN)).size:
      row, place = row_and_place[0]
      raise FloatingPointError(
        f'The logits of new token {before + place} of row {row} are NaN, so that nothing can be drawn: check the '
        "model's weights, and that ids and positions lie within its tables."
      )
    yield tokens


@functools.partial(jax.jit, static_argnames=('graphdef', 'plan', 'width'), donate_argnames='state')
def _start(params, constants: _Constants, state: _State, *, graphdef, plan: _Plan, width: int) -> _State:
  """Reads the newest `width` columns and draws one token."""
  model: CachedModel = nnx.merge(graphdef, params)
  first = state.length - width
  valid = jax.lax.dynamic_slice_in_dim(state.valid, first, width, axis=1)
  position = None
  if constants.positions is not None:
    index = jax.lax.dynamic_slice_in_dim(jnp.cumsum(state.valid, axis=1, dtype=jnp.int32) - 1, first, width, axis=1)
    position = jnp.take_along_axis(constants.positions, jnp.maximum(index, 0)[..., None], axis=1)
  values = _values(state.tokens, first, width, plan.num_ids)
  history = Tokens(values=values, position=position, valid=valid)
  cache, logits = model.start(history, plan.window, room=plan.room)
  return _draw(state._replace(cache=cache), logits, constants, plan)


@functools.partial(jax.jit, static_argnames=('graphdef', 'plan'), donate_argnames='state')
def _advance(params, constants: _Constants, state: _State, count: Array, *, graphdef, plan: _Plan) -> _State:
  """Appends and draws `count` times."""
  model: CachedModel = nnx.merge(graphdef, params)

  def append_and_draw(_: Array, state: _State) -> _State:
    newest = _values(state.tokens, state.length - 1, 1, plan.num_ids)
    position = None
    if constants.positions is not None:
      index = constants.prompt_lengths + state.num_generated - 1
      position = jnp.take_along_axis(constants.positions, index[:, None, None], axis=1)
    cache, logits = model.step(state.cache, Tokens(values=newest, position=position))
    return _draw(state._replace(cache=cache), logits, constants, plan)

  return jax.lax.fori_loop(0, count, append_and_draw, state)


def _values(ids: Int[Array, 'b m'], first: Array, width: int, num_ids: int) -> Int[Array, 'b n *k']:
  """What the tokens from a column on carry."""
  columns = [jax.lax.dynamic_slice_in_dim(ids, first - back, width, axis=1) for back in range(num_ids)]
  return columns[0] if num_ids == 1 else jnp.stack(columns, axis=-1)


def _draw(state: _State, logits: Float[Array, 'b e'], constants: _Constants, plan: _Plan) -> _State:
  if constants.allowed is not None:
    if constants.allowed.shape[1] != logits.shape[1]:
      raise ValueError(f'allowed must have a column for each of {logits.shape[1]} ids; got {constants.allowed.shape}.')
    row = jnp.minimum(state.num_generated, constants.allowed.shape[0] - 1)
    logits = jnp.where(constants.allowed[row][None], logits, -jnp.inf)
  b = logits.shape[0]
  step_key = jax.random.fold_in(constants.key, state.num_generated)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(b))
  token = jnp.where(jnp.max(logits, axis=-1) > -jnp.inf, plan.sampler(logits, keys), jnp.int32(NO_TOKEN))
  return state._replace(
    tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.length, axis=1),
    valid=jax.lax.dynamic_update_slice_in_dim(state.valid, jnp.ones((b, 1), bool), state.length, axis=1),
    length=state.length + 1,
    num_generated=state.num_generated + 1,
  )
