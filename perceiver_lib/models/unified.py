"""The unified model: Perceiver IO and Perceiver AR as one, causal in all three attentions.

S latents stand at each of T timesteps. Latents of a timestep read every input up to it, see every latent up to it,
and answer queries from it on: one rule, `tokens.may_attend`, in encoder, processor and decoder. One timestep is
Perceiver IO; latents that sit on the last inputs, with an identity decoder, are Perceiver AR. The idea is V. Yeevani's
sketch, "Combining Perceiver IO and Perceiver AR" (2024), which left the processor unmasked and so let the future leak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.adapters import AdapterConfig, FeatureAdapterConfig, look_up, table_initializer
from perceiver_lib.attention.attend import read
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.products import Linear, round_operands
from perceiver_lib.attention.projections import joined_times
from perceiver_lib.attention.timesteps import prefix_read
from perceiver_lib.blocks import CrossAttention, LatentBlock, LayerConfig, layer_norm, repeated
from perceiver_lib.decoder import Decoder, DecoderConfig, IdentityDecoderConfig, output_head, scores
from perceiver_lib.models.last_inputs import latest, read_inputs
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, refuse_empty, sum_type

Inputs = Tokens | Mapping[str, Tokens]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedLatents:
  """The same trained latents at every timestep, as in Perceiver IO.

  Attributes:
    num_latents: S, latents of a timestep.
    num_timesteps: T, the most timesteps of a call, 0 .. T-1.
    timestep_table: whether a trained vector for each timestep joins its latents, after the read.
    encoder_window: timesteps that a timestep reads, itself the last of them; the source is always read. None = all.
  """

  num_latents: int
  num_timesteps: int = 1
  timestep_table: bool = True
  encoder_window: int | None = None

  def __post_init__(self):
    check_counts(self, 'num_latents', 'num_timesteps', 'encoder_window')


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputLatents:
  """The latest inputs, projected, as in Perceiver AR; a latent has the timestep and the position of its input.

  Attributes:
    num_latents: N, how many of the latest valid inputs become latents. The source never does.
    projection: 'linear' from C to D, or 'none', which needs C = D.
    key_norm: as in `PerceiverARConfig`.
  """

  num_latents: int
  projection: Literal['linear', 'none'] = 'linear'
  key_norm: Literal['shared', 'query_norm'] = 'shared'

  def __post_init__(self):
    check_counts(self, 'num_latents')
    if self.projection not in ('linear', 'none') or self.key_norm not in ('shared', 'query_norm'):
      raise ValueError(
        'projection must be linear or none and key_norm shared or query_norm; got '
        f'{self.projection!r} and {self.key_norm!r}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedPerceiverConfig:
  """Names for the letters: inputs M x C, latents T x S x D, outputs O x E.

  Attributes:
    input_adapter: raw tokens -> C channels, for one modality or several.
    latents: `LearnedLatents` or `InputLatents`.
    num_latent_channels: D.
    num_blocks: times that the one latent block is applied, and num_self_attends_per_block its depth.
    cross_attend, self_attend: the layers.
    num_rotary_layers: self-attends of the block that rotate, from the first; None = all of them.
    decoder: queries of any kind, each with its own timestep, or `IdentityDecoderConfig`.
    mixed_precision: products of bfloat16 operands with float32 sums, see `attention.products`.
  """

  input_adapter: AdapterConfig
  latents: LearnedLatents | InputLatents
  num_latent_channels: int
  num_blocks: int = 1
  num_self_attends_per_block: int = 6
  cross_attend: LayerConfig = LayerConfig(num_heads=1)
  self_attend: LayerConfig = LayerConfig(num_heads=8)
  num_rotary_layers: int | None = None
  decoder: DecoderConfig | IdentityDecoderConfig
  mixed_precision: bool = False

  def __post_init__(self):
    check_counts(self, 'num_latent_channels', 'num_blocks', 'num_self_attends_per_block')
    c, d = self.input_adapter.num_channels, self.num_latent_channels
    if isinstance(self.latents, LearnedLatents):
      if self.cross_attend.rotary is not None:
        raise ValueError('Learned latents ask the same question at every timestep; their read cannot be rotary.')
    else:
      for name, value in (('projection', 'none'), ('key_norm', 'query_norm')):
        if getattr(self.latents, name) == value and c != d:
          raise ValueError(f'{name}={value!r} needs inputs as wide as the latents, {d} channels; got {c}.')
    if isinstance(self.decoder, DecoderConfig):
      self.decoder.check(self.input_adapter)
    else:
      self.decoder.check(self.input_adapter, num_latent_channels=d)

  @classmethod
  def tiny(
    cls, input_adapter: AdapterConfig, decoder: DecoderConfig | IdentityDecoderConfig, num_timesteps: int
  ) -> UnifiedPerceiverConfig:
    """For tests and smoke runs: seconds on a laptop, learns little."""
    return cls(
      input_adapter=input_adapter,
      latents=LearnedLatents(num_latents=2, num_timesteps=num_timesteps),
      num_latent_channels=16,
      num_self_attends_per_block=2,
      self_attend=LayerConfig(num_heads=2),
      decoder=decoder,
    )

  @classmethod
  def of_bytes(
    cls,
    num_bytes: int,
    *,
    num_timesteps: int = 16,
    num_latents: int = 16,
    num_channels: int = 128,
    num_outputs: int = 10,
  ) -> UnifiedPerceiverConfig:
    """Inputs of any length, equally many bytes a timestep (`modalities.byte_array`), 2 self-attends, one query a step.

    A million bytes fit a laptop; what they cost is measured in notebooks 08 and 10.

    Args:
      num_channels: of inputs, latents and the query, in 8 heads.
    """
    position = FourierFeatures(num_bands=7, max_resolution=(num_bytes // num_timesteps,))
    return cls(
      input_adapter=FeatureAdapterConfig(
        num_values=1,
        scale=2 / 255,
        shift=-1,
        num_projected_channels=num_channels - position.num_channels,
        position=position,
      ),
      latents=LearnedLatents(num_latents=num_latents, num_timesteps=num_timesteps),
      num_latent_channels=num_channels,
      num_self_attends_per_block=2,
      cross_attend=LayerConfig(num_heads=8),
      self_attend=LayerConfig(num_heads=8),
      decoder=DecoderConfig(queries=LearnedQueries(num_queries=1, num_channels=num_channels), num_outputs=num_outputs),
    )


class UnifiedPerceiver(nnx.Module):
  """Latents at every timestep; everything that is known up to a timestep, and nothing else, reaches its outputs."""

  def __init__(self, config: UnifiedPerceiverConfig, *, rngs: nnx.Rngs):
    self.config = config
    c, d = config.input_adapter.num_channels, config.num_latent_channels
    self.input_adapter = config.input_adapter.build(rngs)
    if isinstance(config.latents, LearnedLatents):
      self.latents = nnx.Param(table_initializer()(rngs.params(), (config.latents.num_latents, d)))
      shape = (config.latents.num_timesteps, d)
      with_table = config.latents.timestep_table
      self.timesteps = nnx.Param(table_initializer()(rngs.params(), shape)) if with_table else None
    else:
      self.latent_projection = Linear(c, d, rngs=rngs) if config.latents.projection == 'linear' else None
    self.cross_attends = nnx.List(
      [CrossAttention(config.cross_attend, num_query_channels=d, num_input_channels=c, rngs=rngs)]
    )
    stack = {'num_layers': config.num_self_attends_per_block, 'num_rotary_layers': config.num_rotary_layers}
    self.blocks = nnx.List([LatentBlock(config.self_attend, num_channels=d, **stack, rngs=rngs)])
    if isinstance(config.decoder, DecoderConfig):
      self.decoder = Decoder(config.decoder, input_adapter=config.input_adapter, num_latent_channels=d, rngs=rngs)
    else:
      self.output_norm = layer_norm(d, rngs) if config.decoder.output_norm else None
      kind = 'zeros' if config.decoder.output == 'linear' else config.decoder.output
      self.head = output_head(kind, d, config.decoder.num_outputs, rngs)
    if config.mixed_precision:
      round_operands(self)

  def encode(
    self,
    inputs: Inputs,
    *,
    num_timesteps: int | None = None,
    chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Latents `[b, t * s, d]` with their timesteps, timestep-major, after the read and all blocks.

    Args:
      inputs: raw tokens, by modality where the adapter is, in any order and any number a timestep; all of them with a
        time, or none. Timesteps count from 0; a source has SOURCE_TIME; inputs from timestep T on are never read.
      num_timesteps: T of this call, for learned latents; None = the config's.
      chunk_size, remat, rngs: see `models`.

    Raises:
      ValueError: for timed tokens beside timeless ones, and for timeless inputs of more than one timestep.
    """
    latents = self.read(inputs, num_timesteps=num_timesteps, chunk_size=chunk_size, rngs=rngs)
    s, depth = self.config.latents.num_latents, self.config.num_self_attends_per_block

    def process(latents: Tokens, index: int, rngs: nnx.Rngs | None) -> Tokens:
      return self.blocks[0](latents, num_latents_per_timestep=s, first_layer=index * depth, remat=remat, rngs=rngs)

    return repeated(process, latents, range(self.config.num_blocks), num_layers=depth, remat=remat, rngs=rngs)

  def question(self, batch_size: int) -> Float[Array, 'b h s k']:
    """The read's queries, which are the same at every timestep."""
    cross_attend = self.cross_attends[0]
    q = cross_attend.attention.project_queries(cross_attend.query_norm(self.latents[...])[None], None)
    # Broadcast as at least float32, in which the gradient is summed over the batch.
    return jnp.broadcast_to(q.astype(sum_type(q)), (batch_size, *q.shape[1:])).astype(q.dtype)

  def answer(self, heads: Float[Array, 'b h ts v'], time: Int[Array, ' t'], *, rngs: nnx.Rngs | None = None) -> Tokens:
    """The latents of these timesteps with what they read, and the timesteps' embedding."""
    b, s = heads.shape[0], self.config.latents.num_latents
    latents = Tokens(
      values=repeat(self.latents[...], 's d -> b (t s) d', b=b, t=len(time)),
      position=repeat(time, 't -> 1 (t s) 1', s=s),
      time=repeat(time, 't -> b (t s)', b=b, s=s),
    )
    latents = self.cross_attends[0].finish(latents, heads, rngs=rngs)
    if self.timesteps is None:
      return latents
    table = self.timesteps[...]
    embedding = repeat(look_up(table, time[:, None], shape=table.shape[:1], name='timesteps'), 't d -> 1 (t s) d', s=s)
    return dataclasses.replace(latents, values=latents.values + embedding)

  def read(
    self,
    inputs: Inputs,
    *,
    num_timesteps: int | None = None,
    chunk_size: int | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """The encoder alone: latents before the first block. The arguments are those of `encode`."""
    config = self.config.latents
    refuse_empty(inputs)
    if isinstance(config, InputLatents):
      if num_timesteps is not None:
        raise ValueError(f'Latents made of inputs take their timesteps; got num_timesteps={num_timesteps}.')
      return self._read_by_inputs(inputs, chunk_size=chunk_size, rngs=rngs)
    num_timesteps = config.num_timesteps if num_timesteps is None else num_timesteps
    if self.timesteps is not None and num_timesteps > config.num_timesteps:
      raise ValueError(f'This model has a table of {config.num_timesteps} timesteps; got {num_timesteps}.')
    sources = self.cross_attends[0].sources(inputs, self.input_adapter)
    batch_size, timed = sources[0][0].batch_size, joined_times([tokens for tokens, _ in sources]) is not None
    if not timed and num_timesteps > 1:
      raise ValueError(f'{num_timesteps} timesteps need inputs with a time; got inputs without one.')
    with named('encoder', 'cross_attention', 0):
      q = self.question(batch_size)
      if timed:
        steps = {'num_timesteps': num_timesteps, 'window': config.encoder_window}
        heads = prefix_read(q, sources, **steps, chunk_size=chunk_size)
      else:
        heads = read(q, sources, query_time=None, chunk_size=chunk_size)
    latents = self.answer(heads, jnp.arange(num_timesteps, dtype=jnp.int32), rngs=rngs)
    return latents if timed else dataclasses.replace(latents, time=None)

  def _read_by_inputs(self, inputs: Inputs, *, chunk_size: int | None, rngs: nnx.Rngs | None) -> Tokens:
    if not isinstance(inputs, Tokens) or inputs.time is None:
      raise ValueError('Latents made of inputs need tokens of one modality, with a time; the source may be among them.')
    inputs, config = inputs.checked('inputs'), self.config.latents
    raw, is_latent = latest(inputs, config.num_latents)
    with named('encoder', 'cross_attention', 0):
      settings = {'key_norm': config.key_norm, 'chunk_size': chunk_size, 'rngs': rngs}
      return read_inputs(self, inputs, raw, is_latent, **settings)

  def decode(
    self,
    latents: Tokens,
    queries: Inputs | None = None,
    *,
    chunk_size: int | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens | Float[Array, 'b o e'] | dict[str, Float[Array, 'b o e']]:
    """Outputs of queries `[b, o, e]`, or, with an identity decoder and without queries, of every latent as tokens.

    Args:
      latents: of `encode`.
      queries: raw queries of the kind that the config names; the time of each is the last timestep that it may know.
      chunk_size: queries decoded at a time; None = all at once.
      rngs: see `models`.
    """
    if isinstance(self.config.decoder, DecoderConfig):
      if queries is None:
        raise ValueError('This model decodes queries, each with its time; got none.')
      return self.decoder(latents, queries, self.input_adapter, chunk_size=chunk_size, rngs=rngs)
    if queries is not None:
      raise ValueError('This model has an identity decoder, whose outputs are its latents; got queries.')
    channels = latents.values if self.output_norm is None else self.output_norm(latents.values)
    return dataclasses.replace(latents, values=scores(self.head, self.input_adapter, channels))

  def __call__(
    self,
    inputs: Inputs,
    queries: Inputs | None = None,
    *,
    num_timesteps: int | None = None,
    chunk_size: int | None = None,
    decode_chunk_size: int | None = None,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens | Float[Array, 'b o e'] | dict[str, Float[Array, 'b o e']]:
    """Outputs of `decode` for the latents of `encode`; the arguments are theirs."""
    latents = self.encode(inputs, num_timesteps=num_timesteps, chunk_size=chunk_size, remat=remat, rngs=rngs)
    return self.decode(latents, queries, chunk_size=decode_chunk_size, rngs=rngs)
