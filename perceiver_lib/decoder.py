"""Decoders: output queries read the latents, all at once or a chunk at a time, or every latent is an output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import AdapterConfig
from perceiver_lib.attention.capture import named, record_apart, recording_into, records_all_queries
from perceiver_lib.attention.products import Linear
from perceiver_lib.attention.streamed import cleaned, refuse_out_of_range
from perceiver_lib.blocks import Adapter, CrossAttention, LayerConfig
from perceiver_lib.queries import InputQueries, LearnedQueryTable, QueryConfig
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, zero_invalid


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """Names for the paper's letters: outputs O x E.

  Attributes:
    queries: where the query channels come from.
    num_outputs: E.
    output: the final projection. 'linear'; 'zeros', a linear layer that starts at zero (optical flow); 'tied', the
      scores of the input's embedding table and a bias (masked language modelling); 'none', the channels of the queries.
    cross_attend: the layer; its `query_residual` is off in the paper where queries carry input features.
    heads: modalities with the width of a linear layer of their own behind the projection, which all share (multimodal
      autoencoding). Empty = there are none.
  """

  queries: QueryConfig
  num_outputs: int
  output: Literal['linear', 'zeros', 'tied', 'none'] = 'linear'
  cross_attend: LayerConfig = LayerConfig(num_heads=1)
  heads: tuple[tuple[str, int], ...] = ()

  def __post_init__(self):
    check_counts(self, 'num_outputs')
    if self.output not in ('linear', 'zeros', 'tied', 'none'):
      raise ValueError(f'output must be one of linear, zeros, tied, none; got {self.output!r}.')

  def num_query_channels(self, input_adapter: AdapterConfig) -> int:
    return input_adapter.num_channels if isinstance(self.queries, InputQueries) else self.queries.num_channels

  def check(self, input_adapter: AdapterConfig) -> None:
    """Raises a ValueError if the final projection or a head does not fit the queries or the input's embedding."""
    modalities, heads = (sorted(dict(names)) for names in (getattr(self.queries, 'modalities', ()), self.heads))
    if heads and heads != modalities:
      raise ValueError(f'Every modality of the queries needs a head, or none: {modalities}; got {heads}.')
    width, embeddings = self.num_query_channels(input_adapter), getattr(input_adapter, 'num_embeddings', None)
    if self.output == 'none' and self.num_outputs != width:
      raise ValueError(
        f'Without a final projection the outputs are as wide as the queries, {width}; got {self.num_outputs}.'
      )
    if self.output == 'tied' and (embeddings, input_adapter.num_channels) != (self.num_outputs, width):
      raise ValueError(
        f'A tied output needs an input embedding of {self.num_outputs} ids x {width} channels, as the outputs and the '
        f'queries are; got {embeddings} x {input_adapter.num_channels}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityDecoderConfig:
  """Every latent is an output, by a layer norm and a head; names and start values are those of Perceiver AR.

  Attributes:
    num_outputs: E.
    output_norm, output: as in `PerceiverARConfig`.
  """

  num_outputs: int
  output_norm: bool = True
  output: Literal['linear', 'tied', 'tied_without_bias'] = 'linear'

  def __post_init__(self):
    check_counts(self, 'num_outputs')
    if self.output not in ('linear', 'tied', 'tied_without_bias'):
      raise ValueError(f'output must be linear, tied or tied_without_bias; got {self.output!r}.')

  def check(self, input_adapter: AdapterConfig, *, num_latent_channels: int) -> None:
    """Raises a ValueError if a tied head does not fit the input's embedding."""
    embedding = (getattr(input_adapter, 'num_embeddings', None), input_adapter.num_channels)
    if self.output != 'linear' and embedding != (self.num_outputs, num_latent_channels):
      raise ValueError(
        f'A tied head needs an input embedding of {self.num_outputs} ids x {num_latent_channels} channels; '
        f'got {embedding}.'
      )


class TiedOutput(nnx.Module):
  """Scores of the input's embedding table, and a bias."""

  def __init__(self, num_outputs: int, *, use_bias: bool):
    self.bias = nnx.Param(jnp.zeros((num_outputs,))) if use_bias else None

  def __call__(self, input_adapter, channels: Float[Array, 'b o f']) -> Float[Array, 'b o e']:
    logits = input_adapter.attend(channels)
    return logits if self.bias is None else logits + self.bias[...][None, None]


def output_head(kind: str, num_channels: int, num_outputs: int, rngs: nnx.Rngs) -> TiedOutput | Linear:
  """The final projection by name: 'linear', 'zeros', 'tied' or 'tied_without_bias'."""
  if kind.startswith('tied'):
    return TiedOutput(num_outputs, use_bias=kind == 'tied')
  zeros = {'kernel_init': nnx.initializers.zeros_init()} if kind == 'zeros' else {}
  return Linear(num_channels, num_outputs, **zeros, rngs=rngs)


def scores(head: TiedOutput | Linear, input_adapter, channels: Float[Array, 'b o f']) -> Float[Array, 'b o e']:
  """The final projection of channels; a tied one borrows the embedding of the input adapter."""
  return head(input_adapter, channels) if isinstance(head, TiedOutput) else head(channels)


class Decoder(nnx.Module):
  """Queries -> channels -> one cross-attention to the latents -> final projection."""

  def __init__(self, config: DecoderConfig, *, input_adapter: AdapterConfig, num_latent_channels: int, rngs: nnx.Rngs):
    config.check(input_adapter)
    self.config = config
    width = config.num_query_channels(input_adapter)
    self.queries = None if isinstance(config.queries, InputQueries) else config.queries.build(rngs)
    self.cross_attend = CrossAttention(
      config.cross_attend, num_query_channels=width, num_input_channels=num_latent_channels, rngs=rngs
    )
    self.output = None if config.output == 'none' else output_head(config.output, width, config.num_outputs, rngs)
    heads = {name: Linear(config.num_outputs, num_outputs, rngs=rngs) for name, num_outputs in config.heads}
    self.heads = nnx.Dict(heads) if heads else None

  def default_queries(self, inputs: Tokens | Mapping[str, Tokens], batch_size: int) -> Tokens | Mapping[str, Tokens]:
    """What is asked where nothing is said: every learned query, or every input."""
    if self.queries is None:
      return inputs
    if isinstance(self.queries, LearnedQueryTable):
      return self.queries.all_rows(batch_size)
    raise ValueError(f'{type(self.config.queries).__name__} need output queries with every call; got none.')

  def __call__(
    self,
    latents: Tokens,
    queries: Tokens | Mapping[str, Tokens],
    input_adapter: Adapter | Mapping[str, Adapter],
    *,
    chunk_size: int | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> Float[Array, 'b o e'] | dict[str, Float[Array, 'b o e']]:
    """Outputs `[b, o, e]`, by modality where the queries are; zero where a query is not valid.

    Args:
      latents: `[b, n, d]`, with times if the queries carry them.
      queries: raw queries, for the kind of query that the config names.
      input_adapter: the model's, for queries made of input features and for a tied output.
      chunk_size: queries decoded at a time, in a loop whose memory does not grow with their number; None = all at once.
      rngs: see `models`.

    Raises:
      ValueError: if shapes do not fit the config or the latents.
    """
    adapters = input_adapter if self.queries is None else self.queries
    if isinstance(queries, Tokens):
      if isinstance(adapters, Mapping):
        raise ValueError(f'Queries must be tokens by modality ({", ".join(adapters)}); got tokens without a modality.')
      return self._decode(latents, queries.checked('queries'), adapters, None, input_adapter, chunk_size, rngs)
    names = sorted(adapters) if isinstance(adapters, Mapping) else []
    if not set(queries) <= set(names):
      raise ValueError(f'Queries must be tokens for some of the modalities {names}; got {sorted(queries)}.')
    outputs = {}
    for name, tokens in sorted(queries.items()):
      tokens, head = tokens.checked(f'queries[{name!r}]'), None if self.heads is None else self.heads[name]
      outputs[name] = self._decode(latents, tokens, adapters[name], head, input_adapter, chunk_size, rngs)
    return outputs

  def _decode(self, latents, queries, adapter, head, input_adapter, chunk_size, rngs) -> Float[Array, 'b o e']:
    if queries.batch_size != latents.batch_size:
      raise ValueError(f'Queries need the batch size of the latents, {latents.batch_size}; got {queries.batch_size}.')
    if chunk_size is not None and chunk_size < 1:
      raise ValueError(f'chunk_size must be at least one query; got {chunk_size}.')

    def rows(chunk: Tokens, rngs: nnx.Rngs | None) -> Float[Array, 'b o e']:
      chunk = cleaned(chunk)
      read = self.cross_attend(dataclasses.replace(chunk, values=adapter(chunk)), latents, rngs=rngs)
      outputs = read.values if self.output is None else scores(self.output, input_adapter, read.values)
      outputs = outputs if head is None else head(outputs)
      return zero_invalid(outputs, chunk.valid)

    num_queries = queries.num_tokens
    with named('decoder'):
      if chunk_size is None or chunk_size >= num_queries or records_all_queries():
        return rows(queries, rngs)
      record_apart(lambda chosen: rows(jax.tree.map(lambda leaf: leaf[:, chosen], queries), rngs), num_queries)
    refuse_out_of_range(adapter, queries)
    num_chunks = -(-num_queries // chunk_size)
    keys = None if rngs is None else jax.random.split(rngs.dropout(), num_chunks)

    @jax.checkpoint
    def one(step):
      index, key = step
      start = jnp.minimum(index * chunk_size, num_queries - chunk_size)
      chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, chunk_size, axis=1), queries)
      return rows(chunk, None if key is None else nnx.Rngs(dropout=key))

    with recording_into(None):
      chunks = rearrange(jax.lax.map(one, (jnp.arange(num_chunks), keys)), 'c b o e -> b (c o) e')
    # The last chunk starts early enough to be full: what it shares with the one before is cut off.
    whole = (num_chunks - 1) * chunk_size
    return jnp.concatenate([chunks[:, :whole], chunks[:, whole - num_queries :]], axis=1)
