"""The unified model's encoder: what the latents of every timestep read, in one pass over the inputs.

The latents of all timesteps ask the same question, so the inputs of a timestep are summed up once, as a
`PartialSoftmax`, and a log-sum-exp prefix over timesteps makes of these what each timestep may know: S x M logits
instead of T x S x M / 2, and three small arrays a timestep that generation keeps as its cache. Memory does not grow
with the input: the backward pass keeps the maxima and makes each chunk's keys and values again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.attend import choose_chunk_size
from perceiver_lib.attention.capture import Chosen, record_weights
from perceiver_lib.attention.grouped import first_segment_time, grouped_read, plan_chunks
from perceiver_lib.attention.projections import KeyValueReader, joined_validity, key_stream, keys_and_values
from perceiver_lib.attention.softmax import PartialSoftmax, scaled_logits
from perceiver_lib.attention.streamed import KeyStream, streamed_logits
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import SOURCE_TIME, Tokens, may_attend, readable

SMALL_TIMESTEPS_LOGITS = 2**24
"""Inputs of a few tokens a timestep are read densely up to this many logits (64 MiB): chunks would be almost empty."""

Sources = Sequence[tuple[Tokens, KeyValueReader]]


def may_read(input_time: Int[Array, 'b j'], num_timesteps: int, window: int | None) -> Bool[Array, 'b t j']:
  """The rule for timesteps 0, 1, ... over inputs, with the encoder's window.

  Input times 0 1 2 S (S = SOURCE_TIME), without a window and with window 1:

      step 0   # . . #      # . . #
      step 1   # # . #      . # . #
      step 2   # # # #      . . # #
  """
  step = jnp.broadcast_to(jnp.arange(num_timesteps, dtype=jnp.int32), (input_time.shape[0], num_timesteps))
  allowed = may_attend(step, input_time, None)
  if window is None:
    return allowed
  time = input_time[:, None, :]
  return allowed & ((time > step[:, :, None] - window) | (time == SOURCE_TIME))


def prefix_read(
  q: Float[Array, 'b h s k'],
  sources: Sources,
  *,
  num_timesteps: int,
  window: int | None = None,
  chunk_size: int | None = None,
) -> Float[Array, 'b h ts v']:
  """Attention of the same S queries at timesteps 0 .. T-1 over inputs that each timestep may know, timestep-major.

  Equals `attend.read` of T x S repeated queries with their timesteps, in outputs and gradients. Inputs may come in
  any order and any number a timestep. An input earlier than timestep 0 is seen by all (with a window: by those in
  whose window it is); SOURCE_TIME is always seen.

  Args:
    sources: tokens with a time, each with the reader that makes their keys and values; one softmax over all.
    window: each timestep reads only its last `window` timesteps, and the source. None = everything before.
    chunk_size: tokens read at a time; None = chosen from the shapes (small inputs: all at once).

  Raises:
    ValueError: if inputs carry no time or the window is empty.
  """
  check(sources, window)
  check_counts({'chunk_size': chunk_size})
  sources = _readable(sources, num_timesteps, window)
  num_rows, num_latents = num_timesteps * q.shape[2], q.shape[2]

  def allowed(rows: Chosen) -> Bool[Array, 'b 1 ts j']:
    return _allowed(sources, num_timesteps, window)[:, None, np.arange(num_rows)[rows] // num_latents]

  def logits(heads: Chosen, rows: Chosen) -> Float[Array, 'b h ts j']:
    # Latents ask the same at every timestep: the logits of the chosen ones are made once.
    asked, of_asked = np.unique(np.arange(num_rows)[rows] % num_latents, return_inverse=True)
    return streamed_logits(q[:, heads][:, :, asked], _streams(sources), chunk_size or 4096, heads)[:, :, of_asked]

  if chunk_size is None and _dense_is_better(q, sources, num_timesteps):
    k, v = keys_and_values(sources)
    repeated = repeat(scaled_logits(q, k), 'b h s j -> b h (t s) j', t=num_timesteps)
    mask = repeat(_allowed(sources, num_timesteps, window), 'b t j -> b 1 (t s) j', s=num_latents)
    state = PartialSoftmax.empty(repeated.shape[:3], v.shape[-1], repeated.dtype).fold(repeated, mask, v)
  else:
    partials = timestep_partials(q, sources, num_timesteps=num_timesteps, window=window, chunk_size=chunk_size)
    # Recomputed in the backward pass: the prefixes would be kept through the whole processor.
    state = timestep_major(jax.checkpoint(functools.partial(known, window=window))(partials))
  record_weights(state.log_sum_exp(), logits, allowed)
  return state.output()


def _streams(sources: Sources) -> tuple[KeyStream, ...]:
  return tuple(key_stream(tokens, reader) for tokens, reader in sources)


def _readable(sources: Sources, num_timesteps: int, window: int | None) -> list[tuple[Tokens, KeyValueReader]]:
  after = None if window is None else -window
  return [(readable(tokens, num_timesteps - 1, after=after), reader) for tokens, reader in sources]


def _dense_is_better(q: Array, sources: Sources, num_timesteps: int) -> bool:
  num_rows = q.shape[0] * q.shape[1] * q.shape[2] * num_timesteps
  num_keys = sum(tokens.num_tokens for tokens, _ in sources)
  # Timesteps of a few tokens make many chunks that hold almost nothing.
  few = num_keys < 64 * num_timesteps and num_rows * num_keys <= SMALL_TIMESTEPS_LOGITS
  return few or choose_chunk_size(num_rows, num_keys) is None


def check(sources: Sources, window: int | None) -> None:
  """Raises a ValueError for inputs without a time, or a window that holds no timestep."""
  if any(tokens.time is None for tokens, _ in sources):
    raise ValueError('A read by timestep needs a time for every input; got inputs without one.')
  if window is not None and window < 1:
    raise ValueError(f'The encoder window must hold at least 1 timestep; got {window}.')


def timestep_major(partials: PartialSoftmax) -> PartialSoftmax:
  """From `[b, t, h, s]` to the latents' order, `[b, h, (t s)]`."""
  return jax.tree.map(lambda x: rearrange(x, 'b t h s ... -> b h (t s) ...'), partials)


def _allowed(sources: Sources, num_timesteps: int, window: int | None) -> Bool[Array, 'b t j']:
  tokens = [source for source, _ in sources]
  allowed = may_read(jnp.concatenate([source.time for source in tokens], axis=1), num_timesteps, window)
  valid = joined_validity(tokens)
  return allowed if valid is None else allowed & valid[:, None, :]


def timestep_partials(
  q: Float[Array, 'b h s k'],
  sources: Sources,
  *,
  num_timesteps: int,
  window: int | None = None,
  chunk_size: int | None = None,
) -> PartialSoftmax:
  """An unfinished softmax `[b, g, h, s]` for each group of inputs: first the source, then one group a timestep."""
  sources, num_groups = _readable(sources, num_timesteps, window), 1 + num_timesteps - first_segment_time(window)
  if chunk_size is None:
    num_rows = q.shape[0] * q.shape[1] * q.shape[2]
    # A group fills whole chunks: a quarter of an average group wastes an eighth of the work at most.
    size = max(tokens.num_tokens for tokens, _ in sources) // (4 * num_groups)
    chunk_size = min(2 ** (max(size, 16).bit_length() - 1), choose_chunk_size(num_rows, 2**40))
  plans = tuple(plan_chunks(tokens, num_timesteps, window, chunk_size) for tokens, _ in sources)
  return PartialSoftmax(*grouped_read(q, _streams(sources), plans, (num_groups, chunk_size)))


def known(partials: PartialSoftmax, *, window: int | None) -> PartialSoftmax:
  """What each timestep may know, `[b, t, h, s]`, from the groups of `timestep_partials`."""
  partials = partials._replace(maximum=jax.lax.stop_gradient(partials.maximum))
  if window is None:
    return partials.prefixes().groups(slice(1, None))
  source, steps = partials.groups(slice(1)), partials.groups(slice(1, None))
  # Of the timesteps, the first `window - 1` lie before timestep 0.
  return source.combined(steps.windows(window).groups(slice(window - 1, None)))
