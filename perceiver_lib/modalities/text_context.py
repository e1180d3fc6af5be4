"""Bytes of text that carry their neighbours, as inputs and as queries.

Perceiver IO reads optical flow as 3 x 3 neighbourhoods and asks with input features (2107.14795, section 3.2 and
App. H). The same on text: a token is the ids within a radius, each through one table, and a position. Where nothing may
look ahead, it is an id and those before it: a read finds raw inputs, and of a bare byte nobody knows what it follows.
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
from perceiver_lib.modalities.text import PAD, VOCAB_SIZE
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, float_type


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextAdapterConfig:
  """Several ids a token -> channels: one table for all of them, side by side, then a linear layer.

  Attributes:
    num_ids: ids a token.
    num_embeddings: rows of the table.
    num_id_channels: width of the table.
    num_channels: width of the token.
    position: Fourier features of the place in the text, which join the ids; None = none (rotary models).
  """

  num_ids: int
  num_embeddings: int = VOCAB_SIZE
  num_id_channels: int
  num_channels: int
  position: FourierFeatures | None = FourierFeatures(num_bands=16, max_resolution=(32,))

  def __post_init__(self):
    check_counts(self, 'num_ids', 'num_embeddings', 'num_id_channels', 'num_channels')

  @classmethod
  def of_neighbourhoods(cls, radius: int, *, num_id_channels: int, num_channels: int) -> ContextAdapterConfig:
    """For tokens of `neighbourhoods`."""
    return cls(num_ids=2 * radius + 1, num_id_channels=num_id_channels, num_channels=num_channels)

  def build(self, rngs: nnx.Rngs) -> ContextAdapter:
    return ContextAdapter(self, rngs=rngs)


class ContextAdapter(nnx.Module):
  """Several ids and the place of each token, side by side through a linear layer, see `ContextAdapterConfig`."""

  def __init__(self, config: ContextAdapterConfig, *, rngs: nnx.Rngs):
    self.config = config
    # Of size 1, as the Fourier features beside it: nothing normalises before the linear layer.
    self.table = nnx.Param(jax.random.normal(rngs.params(), (config.num_embeddings, config.num_id_channels)))
    width = config.num_ids * config.num_id_channels
    width += 0 if config.position is None else config.position.num_channels
    self.projection = Linear(width, config.num_channels, rngs=rngs)

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    """Raises a ValueError for values that are not ids [b, m, num_ids] in the table."""
    count, values = self.config.num_ids, tokens.values
    if values.shape[2:] != (count,) or not jnp.issubdtype(values.dtype, jnp.integer):
      raise ValueError(f'This adapter takes integer ids [b, m, {count}]; got {values.dtype} of shape {values.shape}.')
    channels = look_up(self.table[...], values[..., None], shape=(self.config.num_embeddings,), name='embeddings')
    channels = rearrange(channels, 'b m k c -> b m (k c)')
    if self.config.position is not None:
      channels = jnp.concatenate([channels, embed_position(self.config.position, tokens)], axis=-1)
    return self.projection(channels)


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


def with_previous(tokens: Tokens, num_ids: int) -> Tokens:
  """Tokens of ids `[b, m]` that carry the ids before them too, `[b, m, num_ids]`, the newest first.

  a b c with three ids gives a.. ba. cba; . = PAD before the text, and where a token is padding.
  """
  ids = tokens.values if tokens.valid is None else jnp.where(tokens.valid, tokens.values, PAD)
  m = ids.shape[1]
  padded = jnp.pad(ids, ((0, 0), (num_ids - 1, 0)), constant_values=PAD)
  columns = [padded[:, num_ids - 1 - back : num_ids - 1 - back + m] for back in range(num_ids)]
  return dataclasses.replace(tokens, values=jnp.stack(columns, axis=-1))


def tokens_at(tokens: Tokens, places: Int[Array, 'b o'], valid: Bool[Array, 'b o'] | None = None) -> Tokens:
  """Some of the tokens of each text, by their places: what a query made of input features is."""
  position = jnp.broadcast_to(tokens.position, (tokens.batch_size, *tokens.position.shape[1:]))
  values, position = (jnp.take_along_axis(array, places[:, :, None], axis=1) for array in (tokens.values, position))
  return Tokens(values=values, position=position, valid=valid)


def _coordinate(places: Int[Array, '*b o'], span: int) -> Float[Array, '*b o 1']:
  return (2 * places.astype(float_type()) / span - 1)[..., None]
