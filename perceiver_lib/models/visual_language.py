"""A language model that sees: Flamingo's resampler and gated cross-attention (Alayrac et al., 2204.14198).

The language model is a `PerceiverAR`, usually one whose weights nobody trains any more. Before each of its self-attends
a new layer reads a few visual tokens and adds what it read, times tanh of a gate that starts at zero: at first the
model is the language model to the last bit.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from einops import repeat
from flax import nnx

from perceiver_lib.adapters import AdapterConfig, table_initializer
from perceiver_lib.attention.attend import read
from perceiver_lib.attention.capture import named
from perceiver_lib.attention.projections import KeyValueReader
from perceiver_lib.blocks import CrossAttention, LayerConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import SOURCE_TIME, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
  """Any number of inputs to a few visual tokens.

  Attributes:
    input_adapter: raw tokens -> channels, as wide as the latents, for both are read with the same keys.
    num_latents, num_latent_channels: the visual tokens.
    num_layers: reads of inputs and latents, each with its MLP and its own weights.
    layer: the layers.
  """

  input_adapter: AdapterConfig
  num_latents: int
  num_latent_channels: int
  num_layers: int
  layer: LayerConfig

  def __post_init__(self):
    check_counts(self, 'num_latents', 'num_latent_channels', 'num_layers')
    if (c := self.input_adapter.num_channels) != self.num_latent_channels:
      raise ValueError(f'Inputs must be as wide as the latents, {self.num_latent_channels} channels; got {c}.')


class Resampler(nnx.Module):
  """Latents read the inputs *and* the latents, in one softmax, layer after layer (appendix A.1.1)."""

  def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
    self.config = config
    d = config.num_latent_channels
    self.input_adapter = config.input_adapter.build(rngs)
    self.latents = nnx.Param(table_initializer()(rngs.params(), (config.num_latents, d)))
    self.layers = nnx.List(
      [
        CrossAttention(config.layer, num_query_channels=d, num_input_channels=d, rngs=rngs)
        for _ in range(config.num_layers)
      ]
    )

  def __call__(self, inputs: Tokens, *, chunk_size: int | None = None) -> Tokens:
    """Visual tokens `[b, n, d]` of any number of raw inputs without a time; see `models` for `chunk_size`."""
    latents = Tokens(values=repeat(self.latents[...], 'n d -> b n d', b=inputs.batch_size))
    for index, layer in enumerate(self.layers):
      with named('resampler', index):
        own = latents, KeyValueReader(None, layer.query_norm, layer.attention)
        sources = [*layer.sources(inputs, self.input_adapter), own]
        heads = read(layer.questions(latents), sources, query_time=None, chunk_size=chunk_size)
        latents = layer.finish(latents, heads, rngs=None)
    return latents


class GatedCrossAttention(nnx.Module):
  """`x = x + tanh(a) attend(norm(x), norm(visual)); x + tanh(b) mlp(norm(x))`, the gates a and b zero at first."""

  def __init__(self, config: LayerConfig, *, num_channels: int, num_visual_channels: int, rngs: nnx.Rngs):
    self.layer = CrossAttention(
      config, num_query_channels=num_channels, num_input_channels=num_visual_channels, rngs=rngs
    )
    self.attention_gate = nnx.Param(jnp.zeros(()))
    self.mlp_gate = nnx.Param(jnp.zeros(()))

  def __call__(self, latents: Tokens, visual: Tokens) -> Tokens:
    """Latents with what they read of visual tokens `[b, n, d]`; both carry time."""
    layer = self.layer
    heads = read(layer.questions(latents), layer.sources(visual, None), query_time=latents.time)
    x = latents.values + jnp.tanh(self.attention_gate[...]) * layer.attention.merge_heads(heads)
    x = x + jnp.tanh(self.mlp_gate[...]) * layer.mlp(layer.mlp_norm(x))
    return dataclasses.replace(latents, values=x)


class VisualLanguageModel(nnx.Module):
  """A language model with a gated layer before each of its self-attends.

  `parameters.frozen(model, 'language_model')` is a copy in which only the resampler and the gated layers are trained.
  """

  def __init__(
    self,
    language_model: PerceiverAR,
    resampler: nnx.Module,
    config: LayerConfig,
    *,
    num_visual_channels: int,
    rngs: nnx.Rngs,
  ):
    """Makes the gated layers.

    Args:
      language_model: without dropout; it stays usable by itself.
      resampler: raw inputs -> visual tokens `[b, n, d]`, a `Resampler` or another module.
      config: of the gated layers.
      num_visual_channels: D of the visual tokens.
    """
    self.language_model, self.resampler = language_model, resampler
    d = language_model.config.num_latent_channels
    self.gated = nnx.List(
      [
        GatedCrossAttention(config, num_channels=d, num_visual_channels=num_visual_channels, rngs=rngs)
        for _ in language_model.blocks[0].layers
      ]
    )

  def __call__(self, text: Tokens, inputs: Tokens | None) -> Tokens:
    """Logits as of the language model; None = nothing to see, which is the language model itself."""
    return self.answer(text, None if inputs is None else self.resampler(inputs))

  def answer(self, text: Tokens, visual: Tokens | None) -> Tokens:
    """Logits `[b, n, e]` of the byte behind each of the last inputs, as `PerceiverAR`.

    Args:
      text: raw tokens, as the language model takes them.
      visual: tokens `[b, n, d]`. Their time is the place in the text from which on they are visible, None = always.
    """
    latents = self.language_model.read(text)
    if visual is not None and visual.time is None:
      visual = dataclasses.replace(visual, time=jnp.full(visual.values.shape[:2], SOURCE_TIME, jnp.int32))
    for index, (gated, layer) in enumerate(zip(self.gated, self.language_model.blocks[0].layers, strict=True)):
      if visual is not None:
        with named('gated', index):
          latents = gated(latents, visual)
      with named('processor', index):
        latents = layer(latents)
    return dataclasses.replace(latents, values=self.language_model.logits(latents.values))
