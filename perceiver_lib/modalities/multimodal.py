"""Several modalities in one softmax: every adapter's channels are padded to one width by a trainable vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from perceiver_lib.adapters import AdapterConfig, table_initializer
from perceiver_lib.modalities.audio import audio_positions, audio_tokens
from perceiver_lib.modalities.video import video_tokens
from perceiver_lib.positions import grid
from perceiver_lib.queries import position_queries
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import AnyArray, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityAdaptersConfig:
  """Adapters by modality, for inputs or for output queries (Perceiver IO, section 3.2 and App. I).

  The padding is a vector for each modality, so it also says which modality a token is of.

  Attributes:
    modalities: names with their adapters.
    num_channels: the common width; more than any adapter's, so that each modality has a padding (DeepMind: at least 4
      more for inputs, 2 for queries).
    masked: modalities of which the model is to see nothing but how many tokens there are: each token's channels are the
      modality's trainable mask token (the label, in autoencoding of labelled videos). None = there are no mask tokens.
    masked_where_zero: modalities of which that holds for tokens of zeros only, as in training, where half of the labels
      are hidden.
  """

  modalities: tuple[tuple[str, AdapterConfig], ...]
  num_channels: int
  masked: tuple[str, ...] | None = None
  masked_where_zero: tuple[str, ...] = ()

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
    for field in ('masked', 'masked_where_zero'):
      if not set(getattr(self, field) or ()) <= set(names):
        raise ValueError(f'{field} must name modalities, {", ".join(names)}; got {getattr(self, field)}.')
    if self.masked is None and self.masked_where_zero:
      raise ValueError('masked_where_zero needs mask tokens: masked=() gives every modality one.')

  def build(self, rngs: nnx.Rngs) -> Mapping[str, PaddedAdapter]:
    return nnx.Dict({name: PaddedAdapter(self, name, rngs=rngs) for name, _ in self.modalities})


class PaddedAdapter(nnx.Module):
  """Another adapter's channels beside a trainable vector that is the same for every token, or a mask token."""

  def __init__(self, config: ModalityAdaptersConfig, name: str, *, rngs: nnx.Rngs):
    adapter, width, draw = dict(config.modalities)[name], config.num_channels, table_initializer()
    self.adapter = adapter.build(rngs)
    self.padding = nnx.Param(draw(rngs.params(), (width - adapter.num_channels,)))
    self.mask_token = None if config.masked is None else nnx.Param(draw(rngs.params(), (width,)))
    self.masked = name in (config.masked or ())
    self.masked_where_zero = name in config.masked_where_zero

  def __call__(self, tokens: Tokens) -> Float[Array, 'b m c']:
    if self.masked:
      return jnp.broadcast_to(self.mask_token[...], (*tokens.values.shape[:2], self.mask_token.shape[0]))
    channels = self.adapter(tokens)
    padding = jnp.broadcast_to(self.padding[...], (*channels.shape[:2], self.padding.shape[0]))
    channels = jnp.concatenate([channels, padding], axis=-1)
    if self.masked_where_zero:
      known = (tokens.values != 0).reshape(*channels.shape[:2], -1).any(axis=-1, keepdims=True)
      channels = jnp.where(known, channels, self.mask_token[...][None, None])
    return channels


def autoencoding_inputs(
  frames: Num[AnyArray, 'b t y x 3'],
  samples: Num[AnyArray, 'b l'],
  *,
  labels: Int[AnyArray, 'b'] | None = None,
  num_labels: int = 700,
) -> dict[str, Tokens]:
  """What `PerceiverIOConfig.paper_multimodal` reads: blocks of 4 x 4 pixels, patches of 16 samples, a masked label.

  Args:
    frames: in [0, 1]; 16 of 224 x 224 in the released model.
    samples: in [-1, 1]; 30,720 in the released model.
    labels: known to a model with `masked_where_zero=('label',)`, -1 = hidden (half of them in the paper's training).
    num_labels: width of the label, whose mask token stands in for any.
  """
  hidden = jnp.full(len(samples), -1)
  label = Tokens(values=jax.nn.one_hot(hidden if labels is None else labels, num_labels)[:, None])
  return {'audio': audio_tokens(samples), 'image': video_tokens(frames, (1, 4, 4)), 'label': label}


def autoencoding_queries(
  batch_size: int, *, video_shape: tuple[int, int, int] = (16, 224, 224), num_patches: int = 1920
) -> dict[str, Tokens]:
  """What it is asked: every pixel, every patch of sound and the label, on the grid of sub-sampled queries.

  Of 804,737 queries ask some at a time, or all with `decode_chunk_size`; the latents are made once.
  """
  return {
    'audio': position_queries(audio_positions(num_patches, end_points=False), batch_size=batch_size),
    'image': position_queries(grid(video_shape, end_points=False), batch_size=batch_size),
    'label': Tokens(values=jnp.zeros((batch_size, 1), jnp.int32)),
  }
