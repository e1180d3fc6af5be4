"""The layers that every model is made of: cross-attention, self-attention, and stacks of latents' self-attention."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.attention.attend import read
from perceiver_lib.attention.block_causal import block_causal_attend, worth_blocks
from perceiver_lib.attention.capture import named, recording
from perceiver_lib.attention.products import LayerNorm, Linear, added
from perceiver_lib.attention.projections import Attention, KeyValueReader
from perceiver_lib.attention.softmax import KEPT_BY_A_SCAN
from perceiver_lib.positions import Rotary
from perceiver_lib.settings import check_counts, check_numbers
from perceiver_lib.tokens import Tokens

Adapter = Callable[[Tokens], Float[Array, 'b m c']]
"""A token-by-token function from raw values and positions to channels, so that it can be applied chunk by chunk."""

LAYER_NORM_EPSILON = 1e-5

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'gelu_erf': functools.partial(jax.nn.gelu, approximate=False),
  'squared_relu': lambda x: jnp.square(jax.nn.relu(x)),
}
"""By whom: DeepMind's Perceiver and IO; Hugging Face and krasserm; Perceiver AR."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
  """One attention layer and the MLP behind it.

  Attributes:
    num_heads: of the attention.
    qk_channels: width of queries and keys over all heads; None = the width of the inputs that are read (DeepMind's
      `cross_attention_shape_for_attn='kv'`), which for self-attention is the width of the latents.
    v_channels: width of values over all heads; None = `qk_channels`.
    widening_factor: hidden width of the MLP over its input width.
    activation: a key of `ACTIVATIONS`.
    dropout: of each residual branch, after attention and after the MLP.
    query_residual: whether a cross-attention adds its queries to what it read; self-attention always does.
    rotary: how queries and keys turn with position, None = not at all.
    biases: of the linear layers: all have one, or the attention's output only, or none (krasserm's Perceiver AR has
      'output' in its cross-attend and 'none' in its self-attends).
  """

  num_heads: int
  qk_channels: int | None = None
  v_channels: int | None = None
  widening_factor: int = 1
  activation: Literal['gelu_tanh', 'gelu_erf', 'squared_relu'] = 'gelu_tanh'
  dropout: float = 0.0
  query_residual: bool = True
  rotary: Rotary | None = None
  biases: Literal['all', 'output', 'none'] = 'all'

  def __post_init__(self):
    check_counts(self, 'num_heads', 'qk_channels', 'v_channels', 'widening_factor')
    check_numbers(self, 'dropout', least=0, below=1)
    for name, allowed in (('activation', ACTIVATIONS), ('biases', ('all', 'output', 'none'))):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}; got {getattr(self, name)!r}.')

  def attention(self, *, num_query_channels: int, num_input_channels: int, rngs: nnx.Rngs) -> Attention:
    qk_channels = self.qk_channels or num_input_channels
    return Attention(
      num_query_channels=num_query_channels,
      num_input_channels=num_input_channels,
      num_output_channels=num_query_channels,
      qk_channels=qk_channels,
      v_channels=self.v_channels or qk_channels,
      num_heads=self.num_heads,
      rotary=self.rotary,
      qkv_bias=self.biases == 'all',
      output_bias=self.biases != 'none',
      rngs=rngs,
    )


def layer_norm(num_channels: int, rngs: nnx.Rngs) -> LayerNorm:
  return LayerNorm(num_channels, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, rngs=rngs)


def dropped(channels: Float[Array, 'b i d'], rate: float, rngs: nnx.Rngs | None) -> Float[Array, 'b i d']:
  """Dropout of a residual branch; evaluation passes no rngs, and nothing is dropped."""
  if rngs is None or rate == 0.0:
    return channels
  keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, channels.shape)
  return jnp.where(keep, channels / (1 - rate), jnp.zeros((), channels.dtype))


class MLP(nnx.Module):
  """Two linear layers around a nonlinearity, position by position."""

  def __init__(self, num_channels: int, config: LayerConfig, *, rngs: nnx.Rngs):
    self.activation = config.activation
    width, use_bias = config.widening_factor * num_channels, config.biases == 'all'
    self.up = Linear(num_channels, width, use_bias=use_bias, rngs=rngs)
    self.down = Linear(width, num_channels, use_bias=use_bias, rngs=rngs)

  @jax.named_scope('mlp')
  def __call__(self, channels: Float[Array, 'b i d']) -> Float[Array, 'b i d']:
    return self.down(ACTIVATIONS[self.activation](self.up(channels)))


class CrossAttention(nnx.Module):
  """Queries read inputs: `x = queries + attend(norm(queries), norm(inputs)); x + mlp(norm(x))` (Perceiver IO, E.1)."""

  def __init__(self, config: LayerConfig, *, num_query_channels: int, num_input_channels: int, rngs: nnx.Rngs):
    self.config = config
    self.query_norm = layer_norm(num_query_channels, rngs)
    self.input_norm = layer_norm(num_input_channels, rngs)
    self.attention = config.attention(
      num_query_channels=num_query_channels, num_input_channels=num_input_channels, rngs=rngs
    )
    self.mlp_norm = layer_norm(num_query_channels, rngs)
    self.mlp = MLP(num_query_channels, config, rngs=rngs)

  def __call__(
    self,
    queries: Tokens,
    inputs: Tokens | Mapping[str, Tokens],
    adapters: Adapter | Mapping[str, Adapter] | None = None,
    *,
    chunk_size: int | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Returns the queries with what they read.

    Args:
      queries: values are channels `[b, i, f]`; their times say what they may read.
      inputs: tokens, or tokens by modality, which share one softmax. All carry time, or none does, as the queries.
      adapters: from raw values to channels, by modality where the inputs are; None = values are channels already.
      chunk_size, rngs: see `models`.
    """
    heads = read(
      self.questions(queries), self.sources(inputs, adapters), query_time=queries.time, chunk_size=chunk_size
    )
    return self.finish(queries, heads, rngs=rngs)

  def questions(self, queries: Tokens) -> Float[Array, 'b h i k']:
    """The queries as their channels ask: normalised, projected, rotated."""
    return self.attention.project_queries(self.query_norm(queries.values), queries.position)

  def sources(
    self, inputs: Tokens | Mapping[str, Tokens], adapters: Adapter | Mapping[str, Adapter] | None
  ) -> list[tuple[Tokens, KeyValueReader]]:
    """Inputs, each with what makes keys and values of it.

    Raises:
      ValueError: that names the modalities on both sides if inputs and adapters differ.
    """

    def source(tokens: Tokens, name: str, adapter: Adapter | None) -> tuple[Tokens, KeyValueReader]:
      return tokens.checked(name), KeyValueReader(adapter, self.input_norm, self.attention)

    if isinstance(inputs, Tokens):
      if isinstance(adapters, Mapping):
        names = ', '.join(adapters)
        raise ValueError(f'The inputs must be tokens by modality ({names}); got tokens without a modality.')
      return [source(inputs, 'inputs', adapters)]
    if len(set((sizes := {name: tokens.batch_size for name, tokens in inputs.items()}).values())) > 1:
      raise ValueError(f'All modalities must have the same number of examples; they have {sizes}.')
    names = sorted(adapters) if isinstance(adapters, Mapping) else []
    if sorted(inputs) != names:
      raise ValueError(f'The inputs must be tokens for the modalities {names}; got {sorted(inputs)}.')
    return [source(inputs[name], f'inputs[{name!r}]', adapters[name]) for name in names]

  def finish(self, queries: Tokens, heads: Float[Array, 'b h i v'], *, rngs: nnx.Rngs | None) -> Tokens:
    """What follows the attention itself: output projection, residual and MLP."""
    x = dropped(self.attention.merge_heads(heads), self.config.dropout, rngs)
    x = added(queries.values, x) if self.config.query_residual else x
    x = added(x, dropped(self.mlp(self.mlp_norm(x)), self.config.dropout, rngs))
    return dataclasses.replace(queries, values=x)


class SelfAttention(nnx.Module):
  """Latents read latents: `x = x + attend(norm(x)); x + mlp(norm(x))`."""

  def __init__(self, config: LayerConfig, *, num_channels: int, rngs: nnx.Rngs):
    self.config = config
    self.norm = layer_norm(num_channels, rngs)
    self.attention = config.attention(num_query_channels=num_channels, num_input_channels=num_channels, rngs=rngs)
    self.mlp_norm = layer_norm(num_channels, rngs)
    self.mlp = MLP(num_channels, config, rngs=rngs)

  def __call__(
    self, latents: Tokens, *, num_latents_per_timestep: int | None = None, rngs: nnx.Rngs | None = None
  ) -> Tokens:
    """Latents with what they read of each other.

    Args:
      latents: `[b, n, d]` with optional times and validity, which mask as everywhere.
      num_latents_per_timestep: S, where latents lie timestep by timestep with rising times: many of them are then
        attended to in blocks. None = in any order.
      rngs: see `models`.
    """
    normed = dataclasses.replace(latents, values=self.norm(latents.values))
    q = self.attention.project_queries(normed.values, normed.position)
    reader, s = KeyValueReader(None, None, self.attention), num_latents_per_timestep
    if s is not None and latents.time is not None and worth_blocks(q, s):
      rows = {'time': latents.time, 'valid': latents.valid, 'num_latents_per_timestep': s}
      heads = block_causal_attend(q, *reader(normed), **rows)
    else:
      heads = read(q, [(normed, reader)], query_time=latents.time)
    return self.finish(latents, heads, rngs=rngs)

  def projected(
    self, latents: Tokens
  ) -> tuple[Float[Array, 'b h n k'], Float[Array, 'b h n k'], Float[Array, 'b h n v']]:
    """Queries, keys and values of the latents, for a cache."""
    normed = dataclasses.replace(latents, values=self.norm(latents.values))
    q = self.attention.project_queries(normed.values, normed.position)
    return q, *KeyValueReader(None, None, self.attention)(normed)

  def finish(self, latents: Tokens, heads: Float[Array, 'b h n v'], *, rngs: nnx.Rngs | None) -> Tokens:
    """What follows the attention itself: output projection, residual and MLP."""
    x = added(latents.values, dropped(self.attention.merge_heads(heads), self.config.dropout, rngs))
    x = added(x, dropped(self.mlp(self.mlp_norm(x)), self.config.dropout, rngs))
    return dataclasses.replace(latents, values=x)


class LatentBlock(nnx.Module):
  """A stack of self-attention layers over the latents. Weights are shared by calling the same block again.

  Only the first `num_rotary_layers` turn queries and keys, if the config says so; None = all of them.
  """

  def __init__(
    self,
    config: LayerConfig,
    *,
    num_channels: int,
    num_layers: int,
    num_rotary_layers: int | None = None,
    rngs: nnx.Rngs,
  ):
    self.layers = nnx.List([SelfAttention(config, num_channels=num_channels, rngs=rngs) for _ in range(num_layers)])
    for layer in list(self.layers)[num_layers if num_rotary_layers is None else num_rotary_layers :]:
      layer.attention.rotary = None

  def __call__(
    self,
    latents: Tokens,
    *,
    num_latents_per_timestep: int | None = None,
    first_layer: int = 0,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Applies every layer; see `models` for `remat` and `rngs`.

    Args:
      latents: `[b, n, d]`.
      num_latents_per_timestep: S, as in `SelfAttention`.
      first_layer: how many processor layers ran before, which only names attention maps.
    """
    if not recording() and (remat or worth_scan(len(self.layers))):
      return self._scanned(latents, num_latents_per_timestep, remat, rngs)
    for index, layer in enumerate(self.layers):
      with named('processor', first_layer + index):
        latents = layer(latents, num_latents_per_timestep=num_latents_per_timestep, rngs=rngs)
    return latents

  def _scanned(
    self, latents: Tokens, num_latents_per_timestep: int | None, remat: bool, rngs: nnx.Rngs | None
  ) -> Tokens:
    """Compiles one layer for all; with `remat` it keeps one activation a layer and recomputes the rest in the
    backward pass, for which a scan is needed: a checkpointed Python loop of layers saved no memory on CPU.
    """
    split = [nnx.split(layer) for layer in self.layers]
    keys = None if rngs is None else jax.random.split(rngs.dropout(), len(split))
    first = 0
    # One scan runs layers of one kind: some may rotate and others not.
    for graphdef, run in itertools.groupby(split, key=lambda layer: layer[0]):
      layers = [params for _, params in run]
      stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
      of_run = None if keys is None else keys[first : first + len(layers)]

      def step(latents: Tokens, layer: tuple[Any, Array | None], graphdef: Any = graphdef) -> tuple[Tokens, None]:
        params, key = layer
        layer_rngs = None if key is None else nnx.Rngs(dropout=key)
        attend = functools.partial(nnx.merge(graphdef, params), num_latents_per_timestep=num_latents_per_timestep)
        return attend(latents, rngs=layer_rngs), None

      latents, _ = jax.lax.scan(_kept(step, remat), latents, (stacked, of_run))
      first += len(layers)
    return latents


SCANNED_LAYERS = {'cpu': 24, 'gpu': 4, 'tpu': 4}
"""From so many latent layers on, what repeats is compiled once, in a scan, so that compiling does not grow with depth.

On CPU a scan of few layers takes longer to compile than the layers by themselves, and its steps are slower. Tracing and
compiling a gradient there, CPU-seconds of the loop and of the scan: 26 layers of 256 channels 12.6 and 6.0, a step 1.03
times as long; Perceiver on ImageNet 28 and 12; 60 layers of Perceiver AR 40 and 22, with a copy of the stacked weights
and one of their gradients besides.
"""


def worth_scan(num_layers: int) -> bool:
  return num_layers >= SCANNED_LAYERS.get(jax.default_backend(), SCANNED_LAYERS['gpu'])


def repeated(
  step: Callable[[Tokens, int, nnx.Rngs | None], Tokens],
  latents: Tokens,
  indices: Sequence[int],
  *,
  num_layers: int,
  remat: bool,
  rngs: nnx.Rngs | None,
) -> Tokens:
  """The same weights applied again: `step(latents, index, rngs)` for every index, which may only name attention maps.

  Args:
    num_layers: latent layers of one step, which are rematerialised by themselves if `remat`.
  """
  if recording() or len(indices) == 1 or not worth_scan(num_layers * len(indices)):
    for index in indices:
      latents = step(latents, index, rngs)
    return latents
  keys = None if rngs is None else jax.random.split(rngs.dropout(), len(indices))

  def scanned(latents: Tokens, key: Array | None) -> tuple[Tokens, None]:
    return step(latents, indices[0], None if key is None else nnx.Rngs(dropout=key)), None

  return jax.lax.scan(scanned if remat else _kept(scanned, remat), latents, keys, length=len(indices))[0]


def _kept(step: Callable, remat: bool) -> Callable:
  """The body of a scan, which keeps for its backward pass nothing but its carry, or also products and reads."""
  return jax.checkpoint(step, policy=None if remat else KEPT_BY_A_SCAN, prevent_cse=False)
