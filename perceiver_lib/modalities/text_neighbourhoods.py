"""Bytes of text that carry their neighbours along: an input, or a query, is a byte between the bytes around it.

Perceiver IO reads optical flow as 3 x 3 neighbourhoods and asks with input features (2107.14795, section 3.2 and
App. H). The same on text: a token is the ids within a radius, each through one table, and its position. A hidden byte
then knows at once how long its word is and what stands beside it; what is further away is left to the latents.
The paper's own text models read single bytes and ask by learned position, and take 500,000 steps of 2,048 texts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.adapters import embed_position
from perceiver_lib.linear import Linear
from perceiver_lib.modalities.text import PAD, VOCAB_SIZE
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.tokens import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourhoodAdapterConfig:
  """Ids of `2 radius + 1` bytes -> channels: one table for all of them, side by side, then a linear layer.

  Attributes:
    radius: bytes on each side of a token's own; 0 = single bytes.
    num_byte_channels: width of the table.
    num_channels: width of the token.
    position: Fourier features of the place in the text, which join the bytes.
  """

  radius: int
  num_byte_channels: int
  num_channels: int
  position: FourierFeatures

  def build(self, rngs: nnx.Rngs) -> NeighbourhoodAdapter:
    return NeighbourhoodAdapter(self, rngs=rngs)


class NeighbourhoodAdapter(nnx.Module):
  def __init__(self, config: NeighbourhoodAdapterConfig, *, rngs: nnx.Rngs):
    self.config = config
    # Of size 1, as the Fourier features beside it: nothing normalises before the linear layer.
    shape = (VOCAB_SIZE, config.num_byte_channels)
    self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape))
    width = (2 * config.radius + 1) * config.num_byte_channels + config.position.num_channels
    self.projection = Linear(width, config.num_channels, rngs=rngs)

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    """Raises a ValueError for values that are not ids [b, m, 2 radius + 1]."""
    width, values = 2 * self.config.radius + 1, tokens.values
    if values.shape[2:] != (width,) or not jnp.issubdtype(values.dtype, jnp.integer):
      raise ValueError(f'This adapter takes integer ids [b, m, {width}]; got {values.dtype} of shape {values.shape}.')
    channels = rearrange(self.embedding[...][values], 'b m k c -> b m (k c)')
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
  position = 2 * jnp.arange(m, dtype=jnp.float32) / span - 1
  return Tokens(values=values, position=position[None, :, None], valid=valid)


def tokens_at(tokens: Tokens, places: Int[Array, 'b o'], valid: Bool[Array, 'b o'] | None = None) -> Tokens:
  """Some of the tokens of each text, by their places: what a query made of input features is."""
  position = jnp.broadcast_to(tokens.position, (tokens.batch_size, *tokens.position.shape[1:]))
  values, position = (jnp.take_along_axis(array, places[:, :, None], axis=1) for array in (tokens.values, position))
  return Tokens(values=values, position=position, valid=valid)
