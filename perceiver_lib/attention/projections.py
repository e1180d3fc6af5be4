"""From raw tokens to queries, keys and values: the projections of an attention, and the reader of its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.products import LayerNorm, Linear, Operands, rounded
from perceiver_lib.attention.streamed import KeyStream, cleaned, refuse_out_of_range
from perceiver_lib.positions import Rotary
from perceiver_lib.tokens import Tokens


class Attention(nnx.Module):
  """The projections of a multi-head attention; `read` does the attending.

  Queries and keys, values, and the output have separate widths. Heads are the slow axis of each projection's channels,
  as in deepmind-research and in Hugging Face's weights.

  Attributes:
    operands: what queries, keys and values are rounded to, see `attention.products`.
  """

  operands: Operands = 'float32'

  def __init__(
    self,
    *,
    num_query_channels: int,
    num_input_channels: int,
    num_output_channels: int,
    qk_channels: int,
    v_channels: int,
    num_heads: int,
    rotary: Rotary | None,
    qkv_bias: bool = True,
    output_bias: bool = True,
    rngs: nnx.Rngs,
  ):
    for name, width in (('qk_channels', qk_channels), ('v_channels', v_channels)):
      if width % num_heads:
        raise ValueError(f'{name} must be a multiple of num_heads = {num_heads}; got {width}.')
    if rotary is not None:
      rotary.check(qk_channels // num_heads)
    self.num_heads, self.rotary = num_heads, rotary
    self.query = Linear(num_query_channels, qk_channels, use_bias=qkv_bias, rngs=rngs)
    self.key = Linear(num_input_channels, qk_channels, use_bias=qkv_bias, rngs=rngs)
    self.value = Linear(num_input_channels, v_channels, use_bias=qkv_bias, rngs=rngs)
    self.output = Linear(v_channels, num_output_channels, use_bias=output_bias, rngs=rngs)

  def project_queries(self, channels: Float[Array, 'b i f'], position: Array | None) -> Float[Array, 'b h i k']:
    heads = rotated(split_heads(self.query(channels), self.num_heads), position, self.rotary)
    return rounded(heads, self.operands)

  def merge_heads(self, heads: Float[Array, 'b h i v']) -> Float[Array, 'b i f']:
    return self.output(rearrange(heads, 'b h i v -> b i (h v)'))


class KeyValueReader(nnx.Module):
  """Raw tokens -> keys and values: input adapter, layer norm and the two projections of an attention.

  Args:
    adapter: `Tokens -> channels [b, m, c]`, token by token, or None where the values are channels already.
    norm: applied to the channels, or None where they are normalised already (Perceiver AR's latents).
  """

  def __init__(self, adapter: Callable[[Tokens], Array] | None, norm: LayerNorm | None, attention: Attention):
    self.adapter, self.norm, self.key, self.value = adapter, norm, attention.key, attention.value
    self.num_heads, self.rotary, self.operands = attention.num_heads, attention.rotary, attention.operands

  def __call__(self, tokens: Tokens) -> tuple[Float[Array, 'b h j k'], Float[Array, 'b h j v']]:
    channels = tokens.values if self.adapter is None else self.adapter(tokens)
    channels = channels if self.norm is None else self.norm(channels)
    keys = rotated(split_heads(self.key(channels), self.num_heads), tokens.position, self.rotary)
    values = split_heads(self.value(channels), self.num_heads)
    return rounded(keys, self.operands), rounded(values, self.operands)


@dataclasses.dataclass(frozen=True)
class _ProjectKeysAndValues:
  """A reader as the hashable function of explicit parameters that a `KeyStream` asks for."""

  graphdef: Any

  def __call__(self, params: Any, chunk: Tokens) -> tuple[Array, Array]:
    return nnx.merge(self.graphdef, params)(chunk)


def key_stream(tokens: Tokens, reader: KeyValueReader) -> KeyStream:
  """The tokens and their reader as what streamed attention takes."""
  if reader.adapter is not None:
    refuse_out_of_range(reader.adapter, tokens)
  graphdef, params = nnx.split(reader)
  return KeyStream(project=_ProjectKeysAndValues(graphdef), params=params, tokens=tokens)


def split_heads(channels: Float[Array, 'b j c'], num_heads: int) -> Float[Array, 'b h j k']:
  """Heads are the slow axis of the channels."""
  return rearrange(channels, 'b j (h k) -> b h j k', h=num_heads)


def rotated(heads: Float[Array, 'b h j k'], position: Array | None, rotary: Rotary | None) -> Float[Array, 'b h j k']:
  """Turned by position where there is a rotary; raises a ValueError for tokens without one."""
  if rotary is None:
    return heads
  if position is None:
    raise ValueError('Rotary attention needs tokens with a position; got tokens without.')
  return rotary(heads, position)


def keys_and_values(
  sources: Sequence[tuple[Tokens, KeyValueReader]],
) -> tuple[Float[Array, 'b h j k'], Float[Array, 'b h j v']]:
  """Those of all sources at once, side by side."""
  parts = [reader(cleaned(tokens)) for tokens, reader in sources]
  k, v = (jnp.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True))
  return k, v


def joined_times(tokens: Sequence[Tokens]) -> Int[Array, 'b j'] | None:
  """The times of several sources side by side; raises a ValueError if only some of them carry time."""
  times = [source.time for source in tokens if source.time is not None]
  if len(times) not in (0, len(tokens)):
    raise ValueError(f'All sources must carry time, or none may; {len(times)} of {len(tokens)} do.')
  return jnp.concatenate(times, axis=1) if times else None


def joined_validity(tokens: Sequence[Tokens]) -> Bool[Array, 'b j'] | None:
  """Which tokens of several sources exist, side by side; None = all of them."""
  if all(source.valid is None for source in tokens):
    return None
  every = [jnp.ones(t.values.shape[:2], bool) if t.valid is None else t.valid for t in tokens]
  return jnp.concatenate(every, axis=1)
