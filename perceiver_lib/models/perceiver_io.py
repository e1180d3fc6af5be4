"""Perceiver IO: latents read the inputs once, output queries read the latents (Jaegle et al., arXiv 2107.14795)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import (
  AdapterConfig,
  table_initializer,
)
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.products import round_operands
from perceiver_lib.blocks import CrossAttention, LatentBlock, LayerConfig, repeated
from perceiver_lib.decoder import Decoder, DecoderConfig
from perceiver_lib.models.convolution import ConvolutionConfig
from perceiver_lib.models.perceiver_io_sizes import PublishedSizes
from perceiver_lib.models.released import Released
from perceiver_lib.positions import resampled
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, refuse_empty

Outputs = Float[Array, 'b o e'] | dict[str, Float[Array, 'b o e']]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceiverIOConfig(PublishedSizes):
  """Names for the paper's letters: inputs M x C, latents N x D, L self-attends, outputs O x E.

  Attributes:
    input_adapter: raw tokens -> C channels.
    num_latents: N. num_latent_channels: D.
    num_blocks: times that the one latent block is applied, and num_self_attends_per_block its depth.
    cross_attend, self_attend: the layers of encoder and processor.
    decoder: queries, layer and final projection.
    preprocessor: sees the whole image and makes other tokens of it before the adapter; None in all models but one.
    mixed_precision: products of bfloat16 operands with float32 sums, see `attention.products`.
  """

  input_adapter: AdapterConfig
  num_latents: int
  num_latent_channels: int
  num_blocks: int = 1
  num_self_attends_per_block: int = 6
  cross_attend: LayerConfig = LayerConfig(num_heads=1)
  self_attend: LayerConfig = LayerConfig(num_heads=8)
  decoder: DecoderConfig
  preprocessor: ConvolutionConfig | None = None
  mixed_precision: bool = False

  def __post_init__(self):
    check_counts(self, 'num_latents', 'num_latent_channels', 'num_blocks', 'num_self_attends_per_block')
    self.decoder.check(self.input_adapter)

  @classmethod
  def tiny(cls, input_adapter: AdapterConfig, decoder: DecoderConfig) -> PerceiverIOConfig:
    """For tests and smoke runs: seconds on a laptop, learns little."""
    return cls(
      input_adapter=input_adapter,
      num_latents=8,
      num_latent_channels=16,
      num_self_attends_per_block=2,
      self_attend=LayerConfig(num_heads=2),
      decoder=decoder,
    )


class PerceiverIO(Released, nnx.Module):
  """Encode, process, decode: the cost of depth depends on neither the number of inputs nor that of outputs."""

  def __init__(self, config: PerceiverIOConfig, *, rngs: nnx.Rngs):
    self.config = config
    c, d = config.input_adapter.num_channels, config.num_latent_channels
    self.preprocessor = None if config.preprocessor is None else config.preprocessor.build(rngs)
    self.input_adapter = config.input_adapter.build(rngs)
    self.latents = nnx.Param(table_initializer()(rngs.params(), (config.num_latents, d)))
    self.cross_attends = nnx.List(
      [CrossAttention(config.cross_attend, num_query_channels=d, num_input_channels=c, rngs=rngs)]
    )
    self.blocks = nnx.List(
      [LatentBlock(config.self_attend, num_channels=d, num_layers=config.num_self_attends_per_block, rngs=rngs)]
    )
    self.decoder = Decoder(config.decoder, input_adapter=config.input_adapter, num_latent_channels=d, rngs=rngs)
    if config.mixed_precision:
      round_operands(self)

  def with_decoder(self, decoder: DecoderConfig, *, rngs: nnx.Rngs) -> PerceiverIO:
    """A copy that reads as this model does and is asked otherwise, by a new decoder, as for fine-tuning."""
    model = PerceiverIO(dataclasses.replace(self.config, decoder=decoder), rngs=rngs)
    for part in ('preprocessor', 'input_adapter', 'latents', 'cross_attends', 'blocks'):
      setattr(model, part, nnx.clone(getattr(self, part)))
    return model

  def with_grid(self, shape: tuple[int, ...]) -> PerceiverIO:
    """A copy for images of another size, with learned positions that are `positions.resampled` from this model's.

    Raises:
      ValueError: if there are no learned positions over as many axes.
    """
    adapter = self.config.input_adapter
    if len(getattr(position := getattr(adapter, 'position', None), 'shape', ())) != len(shape):
      raise ValueError(f'The inputs have no table of positions over {len(shape)} axes; they have {position}.')
    positions = dataclasses.replace(position, shape=tuple(shape))
    adapter = dataclasses.replace(adapter, position=positions)
    model = nnx.clone(self)
    model.config = dataclasses.replace(self.config, input_adapter=adapter)
    model.input_adapter.config, model.input_adapter.position.config = adapter, positions
    table = model.input_adapter.position.table
    cells = np.asarray(table[...]).reshape(*position.shape, position.num_channels)
    resized = resampled(cells, shape).reshape(-1, position.num_channels)
    model.input_adapter.position.table = table.replace(jnp.asarray(resized, table.dtype))
    return model

  def encode(
    self,
    inputs: Tokens | Mapping[str, Tokens],
    *,
    chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Latents `[b, n, d]` after the read and all blocks.

    Args:
      inputs: raw tokens `[b, m, ...]` without time; neither their order nor padding matters, and M is free.
      chunk_size, remat, rngs: see `models`.

    Raises:
      ValueError: for tokens of the wrong shape, or, where validity is known, an example without any valid token.
    """
    config = self.config
    if self.preprocessor is not None:
      inputs = self.preprocessor(inputs)
    refuse_empty(inputs)
    batch_size = (inputs if isinstance(inputs, Tokens) else next(iter(inputs.values()))).batch_size
    latents = Tokens(values=repeat(self.latents[...], 'n d -> b n d', b=batch_size))
    with named('encoder', 'cross_attention', 0):
      latents = self.cross_attends[0](latents, inputs, self.input_adapter, chunk_size=chunk_size, rngs=rngs)
    depth = config.num_self_attends_per_block

    def process(latents: Tokens, index: int, rngs: nnx.Rngs | None) -> Tokens:
      return self.blocks[0](latents, first_layer=index * depth, remat=remat, rngs=rngs)

    return repeated(process, latents, range(config.num_blocks), num_layers=depth, remat=remat, rngs=rngs)

  def decode(
    self,
    latents: Tokens,
    queries: Tokens | Mapping[str, Tokens],
    *,
    chunk_size: int | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> Outputs:
    """Outputs `[b, o, e]` of any queries; encode once, and decode as often and as much as is wanted.

    Args:
      latents: of `encode`.
      queries: raw queries of the kind that the config names; outputs of queries that are not valid are zero.
      chunk_size: queries decoded at a time; None = all at once. The outputs are the same.
      rngs: see `models`.
    """
    return self.decoder(latents, queries, self.input_adapter, chunk_size=chunk_size, rngs=rngs)

  def __call__(
    self,
    inputs: Tokens | Mapping[str, Tokens],
    queries: Tokens | Mapping[str, Tokens] | None = None,
    *,
    chunk_size: int | None = None,
    decode_chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Outputs:
    """Outputs `[b, o, e]`. Without `queries`, every learned query is asked, or every input where inputs are queries.

    The other arguments are those of `encode` and, as `decode_chunk_size`, of `decode`.
    """
    latents = self.encode(inputs, chunk_size=chunk_size, remat=remat, rngs=rngs)
    if queries is None:
      queries = self.decoder.default_queries(inputs, latents.batch_size)
    return self.decode(latents, queries, chunk_size=decode_chunk_size, rngs=rngs)
