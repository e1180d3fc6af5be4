"""Output queries: what is asked of the latents, one output each (Perceiver IO, section 3.2 and Fig. 3).

A query is a token as an input is: raw values, a position, a time, validity. A query adapter turns a chunk of them into
channels, so that millions of outputs can be decoded chunk by chunk. Any input adapter serves as well, and
`modalities.multimodal.ModalityAdaptersConfig` pads queries of several modalities to one width.

| queries | config | raw tokens |
|---|---|---|
| learned: a class, a place in a text, a task | `LearnedQueries` | ids of rows, `[b, o]` |
| positions, of a grid or the user's own | `PositionQueries` | `position_queries(...)` |
| input features | `InputQueries` | the inputs themselves, or some of them |
| anything else | the user's own, with `num_channels` and `build(rngs)` | what it takes |
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from perceiver_lib.adapters import AdapterConfig, LearnedPositions, embed_position, look_up, table_initializer
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import AnyArray, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedQueries:
  """A trainable vector for every output; for several tasks, one for every task (section 4.1, multitask queries).

  Attributes:
    num_queries: rows of the table.
    num_channels: width of a query.
  """

  num_queries: int
  num_channels: int

  def __post_init__(self):
    check_counts(self, 'num_queries', 'num_channels')

  def build(self, rngs: nnx.Rngs) -> LearnedQueryTable:
    return LearnedQueryTable(self, rngs=rngs)


class LearnedQueryTable(nnx.Module):
  """Ids of rows `[b, o]` -> the trained vectors `[b, o, f]`."""

  def __init__(self, config: LearnedQueries, *, rngs: nnx.Rngs):
    self.config = config
    self.table = nnx.Param(table_initializer()(rngs.params(), (config.num_queries, config.num_channels)))

  def all_rows(self, batch_size: int) -> Tokens:
    """Every row in order, for every example."""
    ids = jnp.arange(self.config.num_queries, dtype=jnp.int32)
    return Tokens(values=jnp.broadcast_to(ids, (batch_size, self.config.num_queries)))

  def __call__(self, tokens: Tokens) -> Float[Array, 'b o f']:
    """Raises a ValueError for values that are not ids `[b, o]` of rows."""
    ids, count = tokens.values, self.config.num_queries
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise ValueError(f'Learned queries are chosen by integer ids [b, o]; got {ids.dtype} of shape {ids.shape}.')
    return look_up(self.table[...], ids[..., None], shape=(count,), name='learned queries')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionQueries:
  """Queries that say nothing but where the output is.

  Attributes:
    position: Fourier features of coordinates, or a learned table over integer coordinates.
  """

  position: FourierFeatures | LearnedPositions

  @property
  def num_channels(self) -> int:
    projected = getattr(self.position, 'num_projected_channels', None)
    return projected or self.position.num_channels

  def build(self, rngs: nnx.Rngs) -> PositionQueryAdapter:
    return PositionQueryAdapter(self, rngs=rngs)


class PositionQueryAdapter(nnx.Module):
  """Positions of tokens without values -> channels `[b, o, f]`."""

  def __init__(self, config: PositionQueries, *, rngs: nnx.Rngs):
    self.position = config.position.build(rngs) if isinstance(config.position, LearnedPositions) else config.position

  def __call__(self, tokens: Tokens) -> Float[Array, 'b o f']:
    if tokens.values.shape[2:] != (0,):
      raise ValueError(
        f'Position queries carry no values, [b, o, 0] as `position_queries` makes them; got {tokens.values.shape}.'
      )
    return embed_position(self.position, tokens)


def position_queries(
  position: Num[AnyArray, '... o p'],
  *,
  batch_size: int,
  time: Int[AnyArray, 'b o'] | None = None,
  valid: Bool[AnyArray, 'b o'] | None = None,
) -> Tokens:
  """Queries at positions that all examples share, `[o, p]`, or at each example's own, `[b, o, p]`.

  `positions.grid(shape)` is the grid of full decoding, `grid(shape, end_points=False)` that of the published
  sub-sampled decoding; some rows of either ask for some of the outputs.
  """
  position = jnp.asarray(position)
  if position.ndim not in (2, 3):
    raise ValueError(f'Query positions must be [o, p] or [b, o, p]; got shape {position.shape}.')
  position = position if position.ndim == 3 else position[None]
  time, valid = (None if array is None else jnp.asarray(array) for array in (time, valid))
  values = jnp.zeros((batch_size, position.shape[1], 0))
  return Tokens(values=values, position=position, time=time, valid=valid).checked('queries')


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputQueries:
  """The channels that the input adapter makes of a token: each output is asked for by its own input (optical flow)."""


QueryConfig = AdapterConfig | InputQueries
