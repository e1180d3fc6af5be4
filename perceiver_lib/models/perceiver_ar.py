"""Perceiver AR: the last inputs are the latents, and everything is causal (Hawthorne et al., ICML 2022, 2202.07765).

One cross-attend reads the whole context, a causal stack works on the latents alone, and each latent predicts what
follows its input. Masks are never built: a token's time is its place in the sequence, and the one rule does the rest.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import AdapterConfig, EmbeddingAdapterConfig, FactoredPositions
from perceiver_lib.attention.caching import LatentWindow, TokenCache
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.products import Linear, round_operands
from perceiver_lib.attention.streamed import cleaned
from perceiver_lib.blocks import CrossAttention, LatentBlock, LayerConfig, layer_norm
from perceiver_lib.decoder import output_head, scores
from perceiver_lib.models import perceiver_ar_cached
from perceiver_lib.models.last_inputs import gathered, last_valid, rank_from_end, read_inputs, validity
from perceiver_lib.models.released import Released
from perceiver_lib.positions import Rotary, SinusoidalPositions
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens

BYTES_AND_RESERVED = 259
"""Bytes behind padding, end and start: the vocabulary of all public configurations of perceiver-ar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceiverARConfig:
  """Names for the paper's letters: context M x C, latents N x D, L self-attends.

  Attributes:
    input_adapter: raw tokens -> C channels, with absolute positions if it adds any.
    num_latents: N, how many of the last valid inputs become latents; every call may choose another number.
    num_latent_channels: D.
    num_outputs: classes of the head, such as the vocabulary.
    num_self_attends: L.
    latent_projection: 'linear' from C to D (`z_linear` of perceiver-ar), or 'none', which needs C = D.
    key_norm: layer norm of the cross-attend's keys: 'shared' = `input_norm` for all of them (perceiver-ar), or
      'query_norm' for the keys that are latents too, which needs C = D (krasserm/perceiver-io).
    num_rotary_layers: self-attends that rotate, from the first; None = all of them. The cross-attend has its own field.
    output_norm: whether a layer norm stands before the head.
    output: 'linear' head, which starts at zero, or 'tied' to the embedding of the input, with a bias or
      'tied_without_bias'.
    cross_attend, self_attend: the layers.
    mixed_precision: products of bfloat16 operands with float32 sums, see `attention.products`.
  """

  input_adapter: AdapterConfig
  num_latents: int
  num_latent_channels: int
  num_outputs: int
  num_self_attends: int
  latent_projection: Literal['linear', 'none'] = 'linear'
  key_norm: Literal['shared', 'query_norm'] = 'shared'
  num_rotary_layers: int | None = None
  output_norm: bool = True
  output: Literal['linear', 'tied', 'tied_without_bias'] = 'linear'
  cross_attend: LayerConfig
  self_attend: LayerConfig
  mixed_precision: bool = False

  def __post_init__(self):
    check_counts(self, 'num_latents', 'num_latent_channels', 'num_outputs')
    check_counts(self, 'num_self_attends', 'num_rotary_layers', least=0)
    for name, allowed in (
      ('latent_projection', ('linear', 'none')),
      ('key_norm', ('shared', 'query_norm')),
      ('output', ('linear', 'tied', 'tied_without_bias')),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}; got {getattr(self, name)!r}.')
    c, d = self.input_adapter.num_channels, self.num_latent_channels
    needing = {'latent_projection': ('none',), 'key_norm': ('query_norm',), 'output': ('tied', 'tied_without_bias')}
    for name, values in needing.items():
      if (value := getattr(self, name)) in values and c != d:
        raise ValueError(f'{name}={value!r} needs inputs as wide as the latents, {d} channels; got {c}.')
    vocabulary = getattr(self.input_adapter, 'num_embeddings', None)
    if self.output != 'linear' and vocabulary != self.num_outputs:
      raise ValueError(f'A tied head has one output for each of {vocabulary} embeddings; got {self.num_outputs}.')

  @classmethod
  def of_bytes(
    cls,
    *,
    num_channels: int,
    num_latents: int,
    num_self_attends: int,
    num_heads: int,
    vocabulary_size: int = BYTES_AND_RESERVED,
    dropout: float = 0.0,
    rotary_fraction: float = 0.5,
  ) -> PerceiverARConfig:
    """Ids of one width throughout, rotary, with perceiver-ar's layers: squared ReLU and MLPs four times as wide."""
    layer = LayerConfig(
      num_heads=num_heads,
      widening_factor=4,
      activation='squared_relu',
      dropout=dropout,
      rotary=Rotary(fraction=rotary_fraction),
    )
    return cls(
      input_adapter=EmbeddingAdapterConfig(num_embeddings=vocabulary_size, num_channels=num_channels),
      num_latents=num_latents,
      num_latent_channels=num_channels,
      num_outputs=vocabulary_size,
      num_self_attends=num_self_attends,
      cross_attend=layer,
      self_attend=layer,
    )

  @classmethod
  def tiny(cls, vocabulary_size: int = BYTES_AND_RESERVED) -> PerceiverARConfig:
    """For tests and smoke runs: seconds on a laptop, learns little."""
    return cls.of_bytes(
      num_channels=16, num_latents=8, num_self_attends=2, num_heads=2, vocabulary_size=vocabulary_size
    )

  @classmethod
  def demo(cls, vocabulary_size: int = BYTES_AND_RESERVED) -> PerceiverARConfig:
    """Learns in minutes on two cores: 128 latents of width 128, 4 self-attends."""
    return cls.of_bytes(
      num_channels=128, num_latents=128, num_self_attends=4, num_heads=4, vocabulary_size=vocabulary_size
    )

  @classmethod
  def paper_copy(cls) -> PerceiverARConfig:
    """Copying 131,072 tokens, 89.8M parameters: `random_mirrored_131072` of perceiver-ar `experiment.py`."""
    return cls._paper(num_self_attends=6, position=SinusoidalPositions(num_channels=1024))

  @classmethod
  def paper_imagenet64(cls) -> PerceiverARConfig:
    """ImageNet 64x64 bytes, 770.09M parameters: `imagenet_w_positions` of perceiver-ar `experiment.py`.

    Positions are (x, y, channel), from 2 on: 0 is padding and 1 the start, as `dataset.py` there counts them.
    """
    return cls._paper(num_self_attends=60, position=FactoredPositions(shape=(66, 66, 5), num_channels=1024))

  @classmethod
  def _paper(cls, *, num_self_attends: int, position: SinusoidalPositions | FactoredPositions) -> PerceiverARConfig:
    layer = LayerConfig(num_heads=16, widening_factor=4, activation='squared_relu', dropout=0.1)
    return cls(
      input_adapter=EmbeddingAdapterConfig(num_embeddings=BYTES_AND_RESERVED, num_channels=1024, position=position),
      num_latents=1024,
      num_latent_channels=1024,
      num_outputs=BYTES_AND_RESERVED,
      num_self_attends=num_self_attends,
      cross_attend=layer,
      self_attend=layer,
    )


class PerceiverAR(Released, nnx.Module):
  """Latents on the last inputs read the whole context once, causally, and predict what comes next."""

  def __init__(self, config: PerceiverARConfig, *, rngs: nnx.Rngs):
    self.config = config
    c, d = config.input_adapter.num_channels, config.num_latent_channels
    self.input_adapter = config.input_adapter.build(rngs)
    self.latent_projection = Linear(c, d, rngs=rngs) if config.latent_projection == 'linear' else None
    self.cross_attends = nnx.List(
      [CrossAttention(config.cross_attend, num_query_channels=d, num_input_channels=c, rngs=rngs)]
    )
    stack = {'num_layers': config.num_self_attends, 'num_rotary_layers': config.num_rotary_layers}
    self.blocks = nnx.List([LatentBlock(config.self_attend, num_channels=d, **stack, rngs=rngs)])
    self.output_norm = layer_norm(d, rngs) if config.output_norm else None
    self.head = output_head('zeros' if config.output == 'linear' else config.output, d, config.num_outputs, rngs)
    if config.mixed_precision:
      round_operands(self)

  def __call__(
    self,
    inputs: Tokens,
    *,
    num_latents: int | None = None,
    chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Logits of the token behind each of the last valid inputs.

    Args:
      inputs: raw tokens `[b, m, ...]` in order, with padding on either side or in between, and without time. Where
        they carry no position, a token's position is the number of valid tokens before it.
      num_latents: N of this call; None = the config's.
      chunk_size, remat, rngs: see `models`.

    Returns:
      Tokens with logits `[b, n, e]`; `time` is the index of the last input that they know, -1 where a row has fewer
      valid inputs than latents (`valid` is False there).
    """
    latents = self.encode(inputs, num_latents=num_latents, chunk_size=chunk_size, remat=remat, rngs=rngs)
    return dataclasses.replace(latents, values=self.logits(latents.values))

  def logits(self, latents: Float[Array, 'b n d']) -> Float[Array, 'b n e']:
    """The identity decoder: output norm and head."""
    normed = latents if self.output_norm is None else self.output_norm(latents)
    return scores(self.head, self.input_adapter, normed)

  def encode(
    self,
    inputs: Tokens,
    *,
    num_latents: int | None = None,
    chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Latents `[b, n, d]` after the read and the stack; the arguments are those of the call."""
    latents = self.read(inputs, num_latents=num_latents, chunk_size=chunk_size, rngs=rngs)
    return self.blocks[0](latents, remat=remat, rngs=rngs)

  def read(
    self,
    inputs: Tokens,
    *,
    num_latents: int | None = None,
    chunk_size: int | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Latents `[b, n, d]` after the read, before the stack; the arguments are those of the call."""
    inputs = self.in_time(inputs)
    raw = self.latent_inputs(inputs, num_latents or self.config.num_latents)
    with named('encoder', 'cross_attention', 0):
      settings = {'key_norm': self.config.key_norm, 'chunk_size': chunk_size, 'rngs': rngs}
      is_latent = rank_from_end(validity(inputs)) < raw.num_tokens
      return read_inputs(self, inputs, raw, is_latent, **settings)

  def in_time(self, inputs: Tokens) -> Tokens:
    """The inputs with their index as time, and with positions."""
    inputs = inputs.checked('inputs')
    if inputs.time is not None:
      raise ValueError('Perceiver AR takes tokens in order, whose time is their index; got inputs with a time.')
    b, m = inputs.values.shape[:2]
    index = jnp.arange(m, dtype=jnp.int32)
    position = inputs.position
    if position is None and inputs.valid is None:
      position = index[None, :, None]
    elif position is None:
      position = jnp.maximum(jnp.cumsum(inputs.valid, axis=1, dtype=jnp.int32) - 1, 0)[:, :, None]
    return dataclasses.replace(inputs, position=position, time=jnp.broadcast_to(index, (b, m)))

  def latent_inputs(self, inputs: Tokens, num_latents: int) -> Tokens:
    """The raw inputs that the latents sit on, their index as time."""
    valid = validity(inputs)
    index = last_valid(valid, num_latents)
    return cleaned(
      Tokens(
        values=gathered(inputs.values, index),
        position=gathered(inputs.position, index),
        time=index,
        valid=index >= 0,
      )
    )

  def start(self, history: Tokens, window: LatentWindow, *, room: int) -> tuple[TokenCache, Float[Array, 'b e']]:
    """Reads a history at once and makes a cache: `perceiver_ar_cached.start`."""
    return perceiver_ar_cached.start(self, history, window, room=room)

  def step(self, cache: TokenCache, tokens: Tokens) -> tuple[TokenCache, Float[Array, 'b e']]:
    """Appends one token to a cache: `perceiver_ar_cached.step`."""
    return perceiver_ar_cached.step(self, cache, tokens)
