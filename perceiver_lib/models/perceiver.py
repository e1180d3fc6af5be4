"""Perceiver: latents that read a byte array again and again (Jaegle et al., ICML 2021, arXiv 2103.03206)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

from einops import reduce, repeat
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import AdapterConfig, FeatureAdapterConfig, table_initializer
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.products import Linear, round_operands
from perceiver_lib.blocks import CrossAttention, LatentBlock, LayerConfig, repeated
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, refuse_empty

Sharing = Literal['all', 'all_but_first', 'none']


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
  """Names for the paper's letters: inputs M x C, latents N x D, L self-attends.

  Attributes:
    input_adapter: raw tokens -> C channels.
    num_latents: N. num_latent_channels: D.
    num_outputs: classes of the linear head.
    num_cross_attends: reads of the input, at most one before each block.
    cross_attend_schedule: 'interleaved' spreads the reads over the blocks, 'start' makes them all before the first.
    cross_attend_sharing: which reads use the same weights; the paper shares all but the first.
    num_blocks: latent blocks, and num_self_attends_per_block their depth.
    block_sharing: which blocks use the same weights; the paper's 44.9M parameters share all, its text all but one.
    cross_attend, self_attend: the layers.
    mixed_precision: products of bfloat16 operands with float32 sums, see `attention.products`.
  """

  input_adapter: AdapterConfig
  num_latents: int
  num_latent_channels: int
  num_outputs: int
  num_cross_attends: int = 1
  cross_attend_schedule: Literal['interleaved', 'start'] = 'interleaved'
  cross_attend_sharing: Sharing = 'all_but_first'
  num_blocks: int = 1
  num_self_attends_per_block: int = 6
  block_sharing: Sharing = 'all'
  cross_attend: LayerConfig = LayerConfig(num_heads=1)
  self_attend: LayerConfig = LayerConfig(num_heads=8)
  mixed_precision: bool = False

  def __post_init__(self):
    sizes = ('num_latents', 'num_latent_channels', 'num_outputs', 'num_cross_attends')
    check_counts(self, *sizes, 'num_blocks', 'num_self_attends_per_block')
    for name, allowed in (
      ('cross_attend_schedule', ('interleaved', 'start')),
      ('cross_attend_sharing', ('all', 'all_but_first', 'none')),
      ('block_sharing', ('all', 'all_but_first', 'none')),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}; got {getattr(self, name)!r}.')
    if self.cross_attend_schedule == 'interleaved' and self.num_cross_attends > self.num_blocks:
      raise ValueError(
        f'Interleaved reads come at most once before each block: 1 to {self.num_blocks}; got {self.num_cross_attends}.'
      )

  def reads_before_block(self, block: int) -> range:
    """Indices of the cross-attends that run before this latent block."""
    if self.cross_attend_schedule == 'start':
      return range(self.num_cross_attends if block == 0 else 0)
    starts = [-(-index * self.num_blocks // self.num_cross_attends) for index in range(self.num_cross_attends)]
    return range(starts.index(block), starts.index(block) + 1) if block in starts else range(0)

  @classmethod
  def tiny(cls, input_adapter: AdapterConfig, num_outputs: int) -> PerceiverConfig:
    """For tests and smoke runs: seconds on a laptop, learns little."""
    return cls(
      input_adapter=input_adapter,
      num_outputs=num_outputs,
      num_latents=8,
      num_latent_channels=16,
      num_cross_attends=2,
      num_blocks=2,
      num_self_attends_per_block=1,
      self_attend=LayerConfig(num_heads=2),
    )

  @classmethod
  def of_bytes(cls, num_bytes: int, num_outputs: int = 10) -> PerceiverConfig:
    """Inputs of any length, one byte a token (`modalities.byte_array`): 256 latents of 256 channels, 6 self-attends.

    A million bytes fit a laptop; what they cost is measured in notebooks 00 and 10.
    """
    position = FourierFeatures(num_bands=64, max_resolution=(num_bytes,))
    return cls(
      input_adapter=FeatureAdapterConfig(
        num_values=1, scale=2 / 255, shift=-1, num_projected_channels=127, position=position
      ),
      num_latents=256,
      num_latent_channels=256,
      num_outputs=num_outputs,
      num_self_attends_per_block=6,
      cross_attend=LayerConfig(num_heads=8),
      self_attend=LayerConfig(num_heads=8),
    )

  @classmethod
  def paper_imagenet(
    cls, *, num_cross_attends: Literal[1, 8] = 8, sharing: Literal['shared', 'unshared'] = 'shared'
  ) -> PerceiverConfig:
    """ImageNet with 2D Fourier features (section 4.1, Tab. 7): 50,176 x 261 inputs, 512 x 1024 latents.

    44.9M parameters with 8 cross-attends, 42.1M with one, 326.2M with 8 and nothing shared.
    """
    return cls(
      input_adapter=FeatureAdapterConfig(
        num_values=3, position=FourierFeatures(num_bands=64, max_resolution=(224, 224))
      ),
      num_outputs=1000,
      num_latents=512,
      num_latent_channels=1024,
      num_cross_attends=num_cross_attends,
      cross_attend_sharing='all_but_first' if sharing == 'shared' else 'none',
      num_blocks=8,
      num_self_attends_per_block=6,
      block_sharing='all' if sharing == 'shared' else 'none',
    )


def num_distinct(count: int, sharing: Sharing) -> int:
  """Sets of weights that `count` applications need."""
  return {'all': min(count, 1), 'all_but_first': min(count, 2), 'none': count}[sharing]


class Perceiver(nnx.Module):
  """Latents cross-attend to the input, self-attend, and read again; the mean over latents is classified."""

  def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
    self.config = config
    d = config.num_latent_channels
    self.input_adapter = config.input_adapter.build(rngs)
    self.latents = nnx.Param(table_initializer()(rngs.params(), (config.num_latents, d)))
    self.cross_attends = nnx.List(
      [
        CrossAttention(
          config.cross_attend, num_query_channels=d, num_input_channels=config.input_adapter.num_channels, rngs=rngs
        )
        for _ in range(num_distinct(config.num_cross_attends, config.cross_attend_sharing))
      ]
    )
    self.blocks = nnx.List(
      [
        LatentBlock(config.self_attend, num_channels=d, num_layers=config.num_self_attends_per_block, rngs=rngs)
        for _ in range(num_distinct(config.num_blocks, config.block_sharing))
      ]
    )
    self.head = Linear(d, config.num_outputs, rngs=rngs)
    if config.mixed_precision:
      round_operands(self)

  def encode(
    self,
    inputs: Tokens | Mapping[str, Tokens],
    *,
    chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Latents `[b, n, d]` after all reads and blocks.

    Args:
      inputs: raw tokens `[b, m, ...]`; neither their order nor padding matters, and M may differ from call to call.
      chunk_size, remat, rngs: see `models`.
    """
    config = self.config
    refuse_empty(inputs)
    batch_size = (inputs if isinstance(inputs, Tokens) else next(iter(inputs.values()))).batch_size
    latents = Tokens(values=repeat(self.latents[...], 'n d -> b n d', b=batch_size))

    def weights(block: int) -> tuple[list[int], int]:
      reads = [min(index, len(self.cross_attends) - 1) for index in config.reads_before_block(block)]
      return reads, min(block, len(self.blocks) - 1)

    def read_and_process(latents: Tokens, block: int, rngs: nnx.Rngs | None) -> Tokens:
      reads, layers = weights(block)
      for index, read in zip(config.reads_before_block(block), reads, strict=True):
        with named('encoder', 'cross_attention', index):
          cross_attend = self.cross_attends[read]
          latents = cross_attend(latents, inputs, self.input_adapter, chunk_size=chunk_size, rngs=rngs)
      return self.blocks[layers](latents, first_layer=block * depth, remat=remat, rngs=rngs)

    depth = config.num_self_attends_per_block
    for _, blocks in itertools.groupby(range(config.num_blocks), key=weights):
      latents = repeated(read_and_process, latents, list(blocks), num_layers=depth, remat=remat, rngs=rngs)
    return latents

  def __call__(
    self,
    inputs: Tokens | Mapping[str, Tokens],
    *,
    chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Float[Array, 'b e']:
    """Class logits; the arguments are those of `encode`."""
    latents = self.encode(inputs, chunk_size=chunk_size, remat=remat, rngs=rngs)
    return self.head(reduce(latents.values, 'b n d -> b d', 'mean'))
