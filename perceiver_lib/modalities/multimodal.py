"""Several modalities in one softmax: every adapter's channels are padded to one width by a trainable vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import AdapterConfig, table_initializer
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityAdaptersConfig:
  """Adapters by modality, for inputs or for output queries (Perceiver IO, section 3.2 and App. I).

  The padding is a vector for each modality, so it also says which modality a token is of.

  Attributes:
    modalities: names with their adapters.
    num_channels: the common width; more than any adapter's, so that each modality has a padding (DeepMind: at least 4
      more for inputs, 2 for queries).
  """

  modalities: tuple[tuple[str, AdapterConfig], ...]
  num_channels: int

  def __post_init__(self):
    check_counts(self, 'num_channels')
    names = [name for name, _ in self.modalities]
    if not names or len(set(names)) < len(names):
      raise ValueError(f'Modalities need one or more names, all different; got {names}.')
    widest = max(self.modalities, key=lambda item: item[1].num_channels)
    if widest[1].num_channels >= self.num_channels:
      raise ValueError(
        f'The common width must exceed that of every modality, {widest[1].num_channels} for {widest[0]!r}; '
        f'got {self.num_channels}.'
      )

  def build(self, rngs: nnx.Rngs) -> Mapping[str, PaddedAdapter]:
    return nnx.Dict({name: PaddedAdapter(adapter, self.num_channels, rngs=rngs) for name, adapter in self.modalities})


class PaddedAdapter(nnx.Module):
  """Another adapter's channels beside a trainable vector that is the same for every token."""

  def __init__(self, config: AdapterConfig, num_channels: int, *, rngs: nnx.Rngs):
    self.adapter = config.build(rngs)
    self.padding = nnx.Param(table_initializer()(rngs.params(), (num_channels - config.num_channels,)))

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    channels = self.adapter(tokens)
    padding = jnp.broadcast_to(self.padding[...], (*channels.shape[:2], self.padding.shape[0]))
    return jnp.concatenate([channels, padding], axis=-1)
