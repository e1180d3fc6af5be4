"""Input adapters: from the raw values and positions of a chunk of tokens to channels.

An adapter is built from a frozen config and maps `Tokens` to channels `[b, m, c]`, token by token, so that the encoder
can apply it a chunk at a time. A user's own adapter needs a config with `num_channels` and `build(rngs)`, nothing more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from perceiver_lib.attention.products import Linear, Operands, product
from perceiver_lib.blocks import Adapter
from perceiver_lib.positions import FourierFeatures, SinusoidalPositions
from perceiver_lib.settings import check_counts, check_numbers
from perceiver_lib.tokens import Tokens, float_type

INITIAL_SCALE = 0.02
"""Standard deviation of latents, queries and position tables: truncated normal (Perceiver, section 3; DeepMind)."""


def table_initializer() -> jax.nn.initializers.Initializer:
  return jax.nn.initializers.truncated_normal(INITIAL_SCALE)


def look_up(
  table: Float[Array, 'n c'], place: Integer[Array, '*b p'], *, shape: tuple[int, ...], name: str
) -> Float[Array, '*b c']:
  """The rows of a table at places of a grid, row-major; NaN outside it, where JAX would give another place's row.

  So the loss guard of `fit` notices it. A place that is known, outside of jit, is refused.

  Args:
    shape: of the grid, whose cells are the table's rows.
    name: of the cells, in the plural.

  Raises:
    ValueError: for known places outside the grid.
  """
  place = place if place.dtype.itemsize >= 4 else place.astype(jnp.int32)
  if not isinstance(place, jax.core.Tracer) and place.size:
    # NumPy, because inside jit even the minimum of a constant is a tracer.
    known = np.asarray(place).reshape(-1, len(shape))
    least, most = known.min(0).tolist(), known.max(0).tolist()
    if any(low < 0 or high >= size for low, high, size in zip(least, most, shape, strict=True)):
      ids = ' to '.join(', '.join(map(str, numbers)) for numbers in (least, most))
      raise ValueError(f'There are {" x ".join(map(str, shape))} {name}; got ids from {ids}.')
  axes = [place[..., axis] for axis in range(len(shape))]
  inside = functools.reduce(jnp.logical_and, ((at >= 0) & (at < size) for at, size in zip(axes, shape, strict=True)))
  index = sum(at * math.prod(shape[axis + 1 :]) for axis, at in enumerate(axes))
  return table.at[jnp.where(inside, index, len(table))].get(mode='fill', fill_value=jnp.nan)


@runtime_checkable
class AdapterConfig(Protocol):
  """What a model asks of an input adapter's config."""

  @property
  def num_channels(self) -> int:
    """Channels that the adapter puts out."""

  def build(self, rngs: nnx.Rngs) -> Adapter: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedPositions:
  """A trainable vector for every cell of a grid.

  Attributes:
    shape: cells along each axis; positions are integer coordinates `[b, m, len(shape)]`.
    num_channels: width of the table.
    num_projected_channels: width after a linear layer, None = no such layer (`project_pos_dim` of DeepMind).
  """

  shape: tuple[int, ...]
  num_channels: int
  num_projected_channels: int | None = None

  def __post_init__(self):
    check_counts(self, 'shape', 'num_channels', 'num_projected_channels')

  def build(self, rngs: nnx.Rngs) -> LearnedPositionTable:
    return LearnedPositionTable(self, rngs=rngs)


class LearnedPositionTable(nnx.Module):
  """The table of `LearnedPositions`: integer coordinates -> channels."""

  def __init__(self, config: LearnedPositions, *, rngs: nnx.Rngs):
    self.config = config
    shape = (math.prod(config.shape), config.num_channels)
    self.table = nnx.Param(table_initializer()(rngs.params(), shape))
    projected = config.num_projected_channels
    self.projection = None if projected is None else Linear(config.num_channels, projected, rngs=rngs)
    self.num_channels = projected or config.num_channels

  def __call__(self, position: Int[Array, 'b m p']) -> Float[Array, 'b m c']:
    """Raises a ValueError for positions that are not integers, not on the grid, or have another number of axes."""
    shape = self.config.shape
    if position.shape[-1] != len(shape) or not jnp.issubdtype(position.dtype, jnp.integer):
      raise ValueError(
        f'A learned table over a grid of {shape} needs integer positions [b, m, {len(shape)}]; '
        f'got {position.dtype} of shape {position.shape}.'
      )
    channels = look_up(self.table[...], position, shape=shape, name='learned positions')
    return channels if self.projection is None else self.projection(channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactoredPositions:
  """A trainable vector for every coordinate of every axis, summed over the axes (perceiver-ar's images: x, y, channel).

  Attributes:
    shape: entries along each axis; positions are integer coordinates `[b, m, len(shape)]`.
    num_channels: width of every table.
  """

  shape: tuple[int, ...]
  num_channels: int

  def __post_init__(self):
    check_counts(self, 'shape', 'num_channels')

  def build(self, rngs: nnx.Rngs) -> FactoredPositionTables:
    return FactoredPositionTables(self, rngs=rngs)


class FactoredPositionTables(nnx.Module):
  """The tables of `FactoredPositions`, one an axis: integer coordinates -> the sum of their channels."""

  def __init__(self, config: FactoredPositions, *, rngs: nnx.Rngs):
    self.axes = nnx.List(
      [LearnedPositions(shape=(size,), num_channels=config.num_channels).build(rngs) for size in config.shape]
    )

  def __call__(self, position: Int[Array, 'b m p']) -> Float[Array, 'b m c']:
    """Raises a ValueError for positions that are not integers or have another number of axes than there are tables."""
    if position.shape[-1] != len(self.axes):
      raise ValueError(
        f'Tables for {len(self.axes)} axes need positions [b, m, {len(self.axes)}]; got {position.shape}.'
      )
    return sum(table(position[..., axis, None]) for axis, table in enumerate(self.axes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureAdapterConfig:
  """Numbers (pixels, patches, samples, coordinates) beside their position: `[scale * values + shift, position]`.

  Attributes:
    num_values: numbers a token, all trailing axes of the values together.
    scale, shift: applied to every number first; bytes become [-1, 1] with 2 / 255 and -1.
    num_projected_channels: width of a linear layer over the numbers, None = the numbers themselves.
    position: Fourier features or a learned table, concatenated behind the numbers; None = no positions.
  """

  num_values: int
  scale: float = 1.0
  shift: float = 0.0
  num_projected_channels: int | None = None
  position: FourierFeatures | LearnedPositions | None = None

  def __post_init__(self):
    check_counts(self, 'num_values', 'num_projected_channels')
    check_numbers(self, 'scale', 'shift')

  @property
  def num_channels(self) -> int:
    position = self.position
    position_channels = 0 if position is None else position.num_channels
    if isinstance(position, LearnedPositions):
      position_channels = position.num_projected_channels or position.num_channels
    return (self.num_projected_channels or self.num_values) + position_channels

  def build(self, rngs: nnx.Rngs) -> FeatureAdapter:
    return FeatureAdapter(self, rngs=rngs)


class FeatureAdapter(nnx.Module):
  """Numbers and their positions side by side, see `FeatureAdapterConfig`."""

  def __init__(self, config: FeatureAdapterConfig, *, rngs: nnx.Rngs):
    self.config = config
    projected = config.num_projected_channels
    self.projection = None if projected is None else Linear(config.num_values, projected, rngs=rngs)
    self.position = config.position.build(rngs) if isinstance(config.position, LearnedPositions) else config.position

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    """Channels of numbers `[b, m, ...]`; raises a ValueError for another number of values a token."""
    b, m = tokens.values.shape[:2]
    values = tokens.values.reshape(b, m, -1).astype(float_type())
    if values.shape[-1] != self.config.num_values:
      raise ValueError(f'This adapter takes {self.config.num_values} values a token; got {tokens.values.shape[2:]}.')
    channels = values * self.config.scale + self.config.shift
    if self.projection is not None:
      channels = self.projection(channels)
    return channels if self.position is None else jnp.concatenate([channels, embed_position(self.position, tokens)], -1)


PositionEmbedding = FourierFeatures | SinusoidalPositions | LearnedPositionTable | FactoredPositionTables


def embed_position(embed: PositionEmbedding, tokens: Tokens) -> Float[Array, 'b m c']:
  """Position channels for every example; computed once where all examples share their positions."""
  if tokens.position is None:
    raise ValueError('This adapter embeds positions; got tokens without a position.')
  channels = embed(tokens.position)
  return jnp.broadcast_to(channels, (tokens.batch_size, *channels.shape[1:]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingAdapterConfig:
  """Ids (bytes, letters, notes) through a table, with positions added.

  Attributes:
    num_embeddings: vocabulary size.
    num_channels: width of both tables.
    position: vectors of the same width, added; None = no absolute positions (rotary models).
  """

  num_embeddings: int
  num_channels: int
  position: LearnedPositions | FactoredPositions | SinusoidalPositions | None = None

  def __post_init__(self):
    check_counts(self, 'num_embeddings', 'num_channels')
    position = self.position
    width = None if position is None else position.num_channels
    if isinstance(position, LearnedPositions):
      width = position.num_projected_channels or position.num_channels
    if width not in (None, self.num_channels):
      raise ValueError(f'Added positions must be {self.num_channels} channels wide, as the embedding; got {width}.')

  def build(self, rngs: nnx.Rngs) -> EmbeddingAdapter:
    return EmbeddingAdapter(self, rngs=rngs)


class EmbeddingAdapter(nnx.Module):
  """Ids through a table, with positions added, see `EmbeddingAdapterConfig`."""

  operands: Operands = 'float32'

  def __init__(self, config: EmbeddingAdapterConfig, *, rngs: nnx.Rngs):
    self.config = config
    shape = (config.num_embeddings, config.num_channels)
    self.embedding = nnx.Param(table_initializer()(rngs.params(), shape))
    trained = isinstance(config.position, LearnedPositions | FactoredPositions)
    self.position = config.position.build(rngs) if trained else config.position

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    """Channels of ids `[b, m]`; raises a ValueError for values that are not, or not in the vocabulary."""
    if tokens.values.ndim != 2 or not jnp.issubdtype(tokens.values.dtype, jnp.integer):
      raise ValueError(f'Ids must be integers [b, m]; got {tokens.values.dtype} of shape {tokens.values.shape}.')
    ids, count = tokens.values[..., None], self.config.num_embeddings
    channels = look_up(self.embedding[...], ids, shape=(count,), name='embeddings')
    return channels if self.position is None else channels + embed_position(self.position, tokens)

  def attend(self, channels: Float[Array, 'b o c']) -> Float[Array, 'b o e']:
    """Logits over the vocabulary with the same table: a tied output head."""
    return product('boc,ec->boe', channels, self.embedding[...], self.operands)
