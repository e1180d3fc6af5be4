"""The plain Transformer that the Perceivers are measured against: every input token goes through every layer.

It is the one rule without latents. The tokens' times make it an encoder (no time), a causal decoder (the index) or a
prefix language model (SOURCE_TIME for the source, the index for what follows: one stack encodes and decodes).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import AdapterConfig, EmbeddingAdapterConfig, LearnedPositions
from perceiver_lib.attention.caching import TokenCache, attend_cache, with_room
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.products import round_operands
from perceiver_lib.attention.streamed import cleaned
from perceiver_lib.blocks import LatentBlock, LayerConfig, layer_norm
from perceiver_lib.decoder import output_head, scores
from perceiver_lib.positions import Rotary
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, zero_invalid


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Pre-norm layers over the channels of an input adapter.

  Attributes:
    input_adapter: raw tokens -> channels, with learned or fixed positions if it adds any.
    num_layers: self-attention layers.
    num_outputs: classes at every token.
    self_attend: the layer; its `rotary` is the other way to tell positions.
    output: 'linear' head, or 'tied' to the input's embedding, with a bias.
    mixed_precision: products of bfloat16 operands with float32 sums, see `attention.products`.
  """

  input_adapter: AdapterConfig
  num_layers: int
  num_outputs: int
  self_attend: LayerConfig
  output: Literal['linear', 'tied'] = 'linear'
  mixed_precision: bool = False

  def __post_init__(self):
    check_counts(self, 'num_layers', 'num_outputs')
    if self.output not in ('linear', 'tied'):
      raise ValueError(f'output must be linear or tied; got {self.output!r}.')
    if self.output == 'tied' and getattr(self.input_adapter, 'num_embeddings', None) != self.num_outputs:
      raise ValueError(f'A tied output needs an input embedding of {self.num_outputs} ids; got {self.input_adapter}.')

  @classmethod
  def of_bytes(
    cls, *, num_channels: int, num_layers: int, num_heads: int, length: int | None = None, vocabulary_size: int = 262
  ) -> TransformerConfig:
    """Ids in and out through one table, MLPs four times as wide.

    Args:
      length: places of a learned position table; None = rotary positions and any length.
    """
    position = None if length is None else LearnedPositions(shape=(length,), num_channels=num_channels)
    return cls(
      input_adapter=EmbeddingAdapterConfig(
        num_embeddings=vocabulary_size, num_channels=num_channels, position=position
      ),
      num_layers=num_layers,
      num_outputs=vocabulary_size,
      output='tied',
      self_attend=LayerConfig(num_heads=num_heads, widening_factor=4, rotary=Rotary() if length is None else None),
    )

  @classmethod
  def paper_bytes(cls) -> TransformerConfig:
    """The byte BERT with the FLOPs of Perceiver IO (Perceiver IO, Tabs. 1 and 12): 6 layers of 512 over 2,048 bytes."""
    return cls.of_bytes(num_channels=512, num_layers=6, num_heads=8, length=2048)


class Transformer(nnx.Module):
  """Self-attention over all tokens: work grows with their number times the depth, and with its square."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    width = config.input_adapter.num_channels
    self.input_adapter = config.input_adapter.build(rngs)
    self.blocks = nnx.List(
      [LatentBlock(config.self_attend, num_channels=width, num_layers=config.num_layers, rngs=rngs)]
    )
    self.output_norm = layer_norm(width, rngs)
    self.head = output_head(config.output, width, config.num_outputs, rngs)
    if config.mixed_precision:
      round_operands(self)

  def __call__(self, inputs: Tokens, *, rngs: nnx.Rngs | None = None) -> Float[Array, 'b m e']:
    """Outputs at every token, zero where it is not valid.

    Args:
      inputs: raw tokens `[b, m, ...]`, with or without time. Where they carry no position, it is their index.
      rngs: a `dropout` stream for training.

    Raises:
      ValueError: for tokens of the wrong shape.
    """
    tokens = self.blocks[0](self._embedded(inputs), rngs=rngs)
    return zero_invalid(self._logits(tokens), tokens.valid)

  def start(self, history: Tokens, *, room: int) -> tuple[TokenCache, Float[Array, 'b e']]:
    """Reads tokens at once and makes a cache, with room for so many behind them.

    Args:
      history: raw tokens, padded on either side. Their times say what they see of each other; every appended token
        sees them all.
      room: tokens that can be appended.

    Returns:
      The cache, and the outputs at the last column of the history.
    """
    tokens, layers = self._embedded(history), []
    for index, layer in enumerate(self.blocks[0].layers):
      _, k, v = layer.projected(tokens)
      layers.append(with_room(k, v, room))
      with named('processor', index):
        tokens = layer(tokens)
    b, m = tokens.values.shape[:2]
    valid = jnp.pad(jnp.ones((b, m), bool) if tokens.valid is None else tokens.valid, ((0, 0), (0, room)))
    cache = TokenCache(
      layers=tuple(layers),
      context_valid=valid,
      latent_valid=valid,
      num_steps=jnp.int32(0),
      position=jnp.full((b, 1), m, jnp.int32),
      room=room,
    )
    return cache, self._logits(tokens)[:, -1]

  def step(self, cache: TokenCache, tokens: Tokens) -> tuple[TokenCache, Float[Array, 'b e']]:
    """Appends one token to every row: outputs at it, as of a call over all tokens so far.

    Args:
      cache: with room for it.
      tokens: `[b, 1, ...]`; without a position, its index is taken.
    """
    if tokens.position is None:
      tokens = dataclasses.replace(tokens, position=cache.position[..., None])
    tokens = dataclasses.replace(tokens, values=self.input_adapter(tokens))
    valid, layers = cache.appended(cache.context_valid, jnp.ones((tokens.batch_size, 1), bool)), []
    for index, layer in enumerate(self.blocks[0].layers):
      q, k, v = layer.projected(tokens)
      layers.append(cache.extended(index, k, v))
      with named('processor', index):
        heads = attend_cache(q, layers[-1], valid)
      tokens = layer.finish(tokens, heads, rngs=None)
    cache = dataclasses.replace(
      cache,
      layers=tuple(layers),
      context_valid=valid,
      latent_valid=valid,
      num_steps=cache.num_steps + 1,
      position=cache.position + 1,
    )
    return cache, self._logits(tokens)[:, 0]

  def _embedded(self, inputs: Tokens) -> Tokens:
    inputs = inputs.checked('inputs')
    if inputs.position is None:
      inputs = dataclasses.replace(inputs, position=jnp.arange(inputs.num_tokens, dtype=jnp.int32)[None, :, None])
    inputs = cleaned(inputs)
    return dataclasses.replace(inputs, values=zero_invalid(self.input_adapter(inputs), inputs.valid))

  def _logits(self, tokens: Tokens) -> Float[Array, 'b m e']:
    return scores(self.head, self.input_adapter, self.output_norm(tokens.values))
