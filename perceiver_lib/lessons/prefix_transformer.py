"""The Transformer that notebook 08 is measured against: every letter and every phoneme goes through every layer.

The one rule over tokens without latents is a prefix language model: letters, at SOURCE_TIME, see all letters; a phoneme
sees the letters and the phonemes up to itself. One stack of layers serves as encoder and decoder.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.attention.attend import KeyValueReader
from perceiver_lib.attention.caching import TokenCache, attend_cache, with_room
from perceiver_lib.attention.products import Linear
from perceiver_lib.blocks import LatentBlock, LayerConfig, layer_norm
from perceiver_lib.tokens import Tokens, zero_invalid


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTransformerConfig:
  """Pre-norm layers over the channels of an embedding of ids."""

  input_adapter: EmbeddingAdapterConfig
  num_layers: int
  num_outputs: int
  self_attend: LayerConfig


class PrefixTransformer(nnx.Module):
  def __init__(self, config: PrefixTransformerConfig, *, rngs: nnx.Rngs):
    width = config.input_adapter.num_channels
    self.input_adapter = config.input_adapter.build(rngs)
    self.block = LatentBlock(config.self_attend, num_channels=width, num_layers=config.num_layers, rngs=rngs)
    self.output_norm = layer_norm(width, rngs)
    self.head = Linear(width, config.num_outputs, rngs=rngs)

  def __call__(self, inputs: Tokens, *, rngs: nnx.Rngs | None = None) -> Float[Array, 'b m e']:
    """Scores at every token, source and target, from ids with their positions and times."""
    channels = zero_invalid(self.input_adapter(inputs), inputs.valid)
    return self._scores(self.block(dataclasses.replace(inputs, values=channels), rngs=rngs).values)

  def _scores(self, channels: Float[Array, 'b m c']) -> Float[Array, 'b m e']:
    return self.head(self.output_norm(channels))

  def start(self, source: Tokens, *, room: int) -> TokenCache:
    """Keys and values of a source, with room for so many tokens behind it."""
    channels = zero_invalid(self.input_adapter(source), source.valid)
    tokens, layers = dataclasses.replace(source, values=channels), []
    for layer in self.block.layers:
      normed = dataclasses.replace(tokens, values=layer.norm(tokens.values))
      layers.append(with_room(*KeyValueReader(None, None, layer.attention)(normed), room))
      tokens = layer(tokens)
    valid = jnp.pad(source.valid, ((0, 0), (0, room)))
    return TokenCache(
      layers=tuple(layers),
      context_valid=valid,
      latent_valid=valid,
      num_steps=jnp.int32(0),
      position=jnp.full((source.batch_size, 1), source.num_tokens, jnp.int32),
      room=room,
    )

  def step(self, cache: TokenCache, newest: Int[Array, 'b']) -> tuple[TokenCache, Float[Array, 'b e']]:
    """Appends one token and scores the next; equals a call over all tokens so far."""
    x = Tokens(values=newest[:, None], position=cache.position[..., None])
    x = dataclasses.replace(x, values=self.input_adapter(x))
    column = cache.context_valid.shape[1] - cache.room + cache.num_steps
    valid = jax.lax.dynamic_update_slice_in_dim(cache.context_valid, jnp.ones((len(newest), 1), bool), column, axis=1)
    layers = []
    for index, layer in enumerate(self.block.layers):
      normed = dataclasses.replace(x, values=layer.norm(x.values))
      q = layer.attention.project_queries(normed.values, None)
      layers.append(cache.extended(index, *KeyValueReader(None, None, layer.attention)(normed)))
      x = layer.finish(x, attend_cache(q, layers[-1], valid), rngs=None)
    cache = dataclasses.replace(
      cache, layers=tuple(layers), context_valid=valid, num_steps=cache.num_steps + 1, position=cache.position + 1
    )
    return cache, self._scores(x.values)[:, 0]
