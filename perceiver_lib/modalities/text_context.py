"""Bytes of text that carry what stands around them: as inputs between their neighbours, as queries around their hole.

Perceiver IO reads optical flow as 3 x 3 neighbourhoods and asks with input features (2107.14795, section 3.2 and
App. H). The same on text: a token is a list of ids, each through one table, and a position. An input is the ids within
a radius. A query is a hole: what stands before and after the hidden bytes, byte by byte and as hashed n-grams (CANINE,
2103.06874; BLT, 2412.09871, section 3.2), and which byte of the hole is asked for.
The paper's own text models read single bytes and ask by learned position, and take 500,000 steps of 2,048 texts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.adapters import embed_position, look_up
from perceiver_lib.attention.products import Linear
from perceiver_lib.modalities.text import MASK, PAD, VOCAB_SIZE
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, float_type

NGRAMS = (2, 3, 4, 5, 6)
"""Lengths of the hashed n-grams that end before a hole, and of those that start behind it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextAdapterConfig:
  """Several ids a token -> channels: one table for all of them, side by side, then a linear layer.

  Attributes:
    num_ids: ids a token.
    num_embeddings: rows of the table: the bytes' vocabulary, and buckets of hashed n-grams behind it.
    num_id_channels: width of the table.
    num_channels: width of the token.
    position: Fourier features of the place in the text, which join the ids.
  """

  num_ids: int
  num_embeddings: int = VOCAB_SIZE
  num_id_channels: int
  num_channels: int
  position: FourierFeatures = FourierFeatures(num_bands=16, max_resolution=(32,))

  def __post_init__(self):
    check_counts(self, 'num_ids', 'num_embeddings', 'num_id_channels', 'num_channels')

  @classmethod
  def of_neighbourhoods(cls, radius: int, *, num_id_channels: int, num_channels: int) -> ContextAdapterConfig:
    """For tokens of `neighbourhoods`."""
    return cls(num_ids=2 * radius + 1, num_id_channels=num_id_channels, num_channels=num_channels)

  @classmethod
  def of_holes(cls, radius: int, *, num_buckets: int, num_id_channels: int, num_channels: int) -> ContextAdapterConfig:
    """For queries of `holes`."""
    return cls(
      num_ids=num_hole_ids(radius),
      num_embeddings=VOCAB_SIZE + num_buckets,
      num_id_channels=num_id_channels,
      num_channels=num_channels,
    )

  def build(self, rngs: nnx.Rngs) -> ContextAdapter:
    return ContextAdapter(self, rngs=rngs)


class ContextAdapter(nnx.Module):
  """Several ids and the place of each token, side by side through a linear layer, see `ContextAdapterConfig`."""

  def __init__(self, config: ContextAdapterConfig, *, rngs: nnx.Rngs):
    self.config = config
    # Of size 1, as the Fourier features beside it: nothing normalises before the linear layer.
    self.table = nnx.Param(jax.random.normal(rngs.params(), (config.num_embeddings, config.num_id_channels)))
    width = config.num_ids * config.num_id_channels + config.position.num_channels
    self.projection = Linear(width, config.num_channels, rngs=rngs)

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    """Raises a ValueError for values that are not ids [b, m, num_ids] in the table."""
    count, values = self.config.num_ids, tokens.values
    if values.shape[2:] != (count,) or not jnp.issubdtype(values.dtype, jnp.integer):
      raise ValueError(f'This adapter takes integer ids [b, m, {count}]; got {values.dtype} of shape {values.shape}.')
    channels = look_up(self.table[...], values[..., None], shape=(self.config.num_embeddings,), name='embeddings')
    channels = rearrange(channels, 'b m k c -> b m (k c)')
    return self.projection(jnp.concatenate([channels, embed_position(self.config.position, tokens)], axis=-1))


def neighbourhoods(
  ids: Int[Array, 'b m'], *, radius: int, span: int, valid: Bool[Array, 'b m'] | None = None
) -> Tokens:
  """Tokens whose values are the ids within `radius`, PAD beyond the text, and whose position is 2 place / span - 1.

  Args:
    span: the bytes over which positions run from -1 to 1, the length of a training window.
    valid: False = padding, which no other token carries either.
  """
  ids = ids if valid is None else jnp.where(valid, ids, PAD)
  m = ids.shape[1]
  padded = jnp.pad(ids, ((0, 0), (radius, radius)), constant_values=PAD)
  values = jnp.stack([padded[:, start : start + m] for start in range(2 * radius + 1)], axis=-1)
  position = _coordinate(jnp.arange(m, dtype=jnp.int32), span)
  return Tokens(values=values, position=position[None], valid=valid)


def tokens_at(tokens: Tokens, places: Int[Array, 'b o'], valid: Bool[Array, 'b o'] | None = None) -> Tokens:
  """Some of the tokens of each text, by their places: what a query made of input features is."""
  position = jnp.broadcast_to(tokens.position, (tokens.batch_size, *tokens.position.shape[1:]))
  values, position = (jnp.take_along_axis(array, places[:, :, None], axis=1) for array in (tokens.values, position))
  return Tokens(values=values, position=position, valid=valid)


def num_hole_ids(radius: int) -> int:
  """Ids of a query of `holes`."""
  return 2 * radius + 3 + 2 * len(NGRAMS)


def holes(
  ids: Int[Array, 'b m'],
  places: Int[Array, 'b o'],
  *,
  radius: int,
  span: int,
  num_buckets: int,
) -> Tokens:
  """Queries for hidden bytes, by the run of MASK that each is in. Position and `span` as in `neighbourhoods`.

  The values `[b, o, num_hole_ids(radius)]` of a query are the `radius` ids before the hole and as many after it, PAD
  beyond the text; the byte's place in the hole, from 1, its place from the end, and their sum, which share the table
  with the ids; and the buckets of the n-grams before and after, from VOCAB_SIZE on.

  Args:
    ids: with MASK at every hidden byte, so that nothing hidden is carried, and PAD on padding.
    places: of the bytes asked for. A byte that is not hidden is a hole without bytes.
    radius: at least the longest of `NGRAMS`.

  Raises:
    ValueError: for a smaller radius.
  """
  if radius < max(NGRAMS):
    raise ValueError(f'A hole needs a radius of at least {max(NGRAMS)} bytes, its longest n-gram; got {radius}.')
  m = ids.shape[1]
  index, shown = jnp.arange(m, dtype=jnp.int32)[None], ids != MASK
  last = jax.lax.cummax(jnp.where(shown, index, -1), axis=1)
  following = jax.lax.cummin(jnp.where(shown, index, m), axis=1, reverse=True)
  last, following = (jnp.take_along_axis(array, places, axis=1) for array in (last, following))

  step = jnp.arange(radius, dtype=jnp.int32)[None, None]
  around = jnp.concatenate([last[..., None] - step, following[..., None] + step], axis=-1)
  # One PAD before the text and one behind it stand for everything beyond.
  padded = jnp.pad(ids, ((0, 0), (1, 1)), constant_values=PAD)
  around = rearrange(jnp.clip(around + 1, 0, m + 1), 'b o k -> b (o k)')
  context = rearrange(jnp.take_along_axis(padded, around, axis=1), 'b (o k) -> b o k', k=2 * radius).astype(jnp.int32)
  numbers = jnp.clip(jnp.stack([places - last, following - places, following - last], axis=-1), 0, VOCAB_SIZE - 1)
  sides = jnp.split(context, 2, axis=-1)
  hashed = [VOCAB_SIZE + _buckets(side, seed, num_buckets) for seed, side in enumerate(sides)]
  values = jnp.concatenate([context, numbers.astype(jnp.int32), *hashed], axis=-1)
  return Tokens(values=values, position=_coordinate(places, span))


def _buckets(nearest_first: Int[Array, 'b o k'], seed: int, num_buckets: int) -> Int[Array, 'b o n']:
  """FNV-1a hashes of the first ids, one for each length in `NGRAMS`."""
  ids, found = nearest_first.astype(jnp.uint32), []
  code = jnp.full(ids.shape[:2], 2166136261 + seed, jnp.uint32)
  for count in range(1, max(NGRAMS) + 1):
    code = (code ^ ids[..., count - 1]) * jnp.uint32(16777619)
    if count in NGRAMS:
      # The low bits of FNV mix least.
      found.append(((code ^ (code >> 15)) % jnp.uint32(num_buckets)).astype(jnp.int32))
  return jnp.stack(found, axis=-1)


def _coordinate(places: Int[Array, '*b o'], span: int) -> Float[Array, '*b o 1']:
  return (2 * places.astype(float_type()) / span - 1)[..., None]
