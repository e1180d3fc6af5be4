"""The plain Transformer that the Perceivers are measured against: every input token goes through every layer."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import AdapterConfig, EmbeddingAdapterConfig, LearnedPositions
from perceiver_lib.attention.attend import KeyValueReader, attend
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.products import round_operands
from perceiver_lib.blocks import LatentBlock, LayerConfig, SelfAttention, layer_norm
from perceiver_lib.decoder import output_head, scores
from perceiver_lib.positions import Rotary
from perceiver_lib.tokens import Tokens, zero_invalid


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Pre-norm encoder, or causal decoder, over the channels of an input adapter.

  Attributes:
    input_adapter: raw tokens -> channels, with learned or fixed positions if it adds any.
    num_layers: self-attention layers.
    num_outputs: classes at every token.
    self_attend: the layer; its `rotary` is the other way to tell positions.
    output: 'linear' head, or 'tied' to the input's embedding, with a bias.
    causal: whether a token sees only itself and those before it.
    window: tokens that a causal layer sees at most; None = all before. Tokens are cut into blocks of half a window, and
      each block sees itself and the one before, so a token sees from half a window to a whole one.
    mixed_precision: products of bfloat16 operands with float32 sums, see `precision`.
  """

  input_adapter: AdapterConfig
  num_layers: int
  num_outputs: int
  self_attend: LayerConfig
  output: Literal['linear', 'tied'] = 'linear'
  causal: bool = False
  window: int | None = None
  mixed_precision: bool = False

  def __post_init__(self):
    if self.output not in ('linear', 'tied'):
      raise ValueError(f'output must be linear or tied; got {self.output!r}.')
    if self.output == 'tied' and getattr(self.input_adapter, 'num_embeddings', None) != self.num_outputs:
      raise ValueError(f'A tied output needs an input embedding of {self.num_outputs} ids; got {self.input_adapter}.')
    if self.window is not None and (not self.causal or self.window < 2 or self.window % 2):
      raise ValueError(f'A window must be even, 2 or more, and causal; got {self.window}, causal={self.causal}.')

  @classmethod
  def of_bytes(
    cls,
    *,
    num_channels: int,
    num_layers: int,
    num_heads: int,
    length: int | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    vocabulary_size: int = 262,
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
      causal=causal,
      window=window,
      self_attend=LayerConfig(
        num_heads=num_heads, widening_factor=4, dropout=dropout, rotary=Rotary() if length is None else None
      ),
    )

  @classmethod
  def tiny(cls, *, length: int | None = None, causal: bool = False, window: int | None = None) -> TransformerConfig:
    """For tests and smoke runs: seconds on a laptop, learns little."""
    return cls.of_bytes(num_channels=16, num_layers=2, num_heads=2, length=length, causal=causal, window=window)

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
      inputs: raw tokens `[b, m, ...]` without time; a causal model takes their order as time. Where they carry no
        position, it is their index.
      rngs: a `dropout` stream for training.

    Raises:
      ValueError: for tokens of the wrong shape or with time.
    """
    inputs = inputs.checked('inputs')
    if inputs.time is not None:
      raise ValueError('A Transformer takes tokens in order, whose time is their index; got inputs with a time.')
    b, m = inputs.values.shape[:2]
    index = jnp.arange(m, dtype=jnp.int32)
    inputs = dataclasses.replace(
      inputs,
      position=index[None, :, None] if inputs.position is None else inputs.position,
      time=jnp.broadcast_to(index, (b, m)) if self.config.causal else None,
    )
    channels = zero_invalid(self.input_adapter(inputs), inputs.valid)
    tokens = dataclasses.replace(inputs, values=channels)
    if self.config.window is None:
      tokens = self.blocks[0](tokens, rngs=rngs)
    else:
      for layer_index, layer in enumerate(self.blocks[0].layers):
        with named('processor', layer_index):
          tokens = windowed(layer, tokens, self.config.window // 2, rngs)
    outputs = scores(self.head, self.input_adapter, self.output_norm(tokens.values))
    return zero_invalid(outputs, inputs.valid)


def windowed(layer: SelfAttention, tokens: Tokens, block: int, rngs: nnx.Rngs | None) -> Tokens:
  """A layer in which each block of tokens sees itself and the block before, under the rule: work linear in length."""
  b, m = tokens.values.shape[:2]
  normed = dataclasses.replace(tokens, values=layer.norm(tokens.values))
  q = layer.attention.project_queries(normed.values, tokens.position)
  k, v = KeyValueReader(None, None, layer.attention)(normed)
  valid = jnp.ones((b, m), bool) if tokens.valid is None else tokens.valid
  missing = -m % block

  def blocks(array: Array, axes: str, axis: int) -> Array:
    """Whole blocks `[b, n, ...]` along an axis."""
    widths = [(0, missing if a == axis else 0) for a in range(array.ndim)]
    return rearrange(jnp.pad(array, widths), axes, block=block)

  def with_previous(array: Array, axis: int) -> Array:
    previous = jnp.pad(array[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (array.ndim - 2))
    return rearrange(jnp.concatenate([previous, array], axis=axis), 'b n ... -> (b n) ...')

  heads, flat = 'b h (n block) k -> b n h block k', 'b (n block) -> b n block'
  # Float32, in which the gradients of a key's two uses are added.
  q, k, v = (blocks(array.astype(jnp.float32), heads, 2) for array in (q, k, v))
  time, valid = blocks(tokens.time, flat, 1), blocks(valid, flat, 1)
  output = attend(
    *(
      array.astype(layer.attention.operands)
      for array in (rearrange(q, 'b n ... -> (b n) ...'), with_previous(k, 3), with_previous(v, 3))
    ),
    query_time=rearrange(time, 'b n block -> (b n) block'),
    key_time=with_previous(time, 2),
    key_valid=with_previous(valid, 2),
  )
  output = rearrange(output, '(b n) h block k -> b h (n block) k', b=b)
  return layer.finish(tokens, output[:, :, :m], rngs=rngs)
