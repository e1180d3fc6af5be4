"""What a million bytes over sixteen timesteps cost the unified model, for notebook 08."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, Float

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.attention.attend import read
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.experiments.measuring import measure
from perceiver_lib.experiments.workers import in_fresh_process
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.host import enable_compilation_cache
from perceiver_lib.training.losses import cross_entropy

NUM_TIMESTEPS, NUM_LATENTS, WIDTH = 16, 16, 128
How = Literal['prefix', 'general']


def byte_model(num_bytes: int, *, width: int = WIDTH) -> UnifiedPerceiverConfig:
  """One byte a token; 16 timesteps with 16 latents each; `width` channels and 8 heads throughout, 2 latent layers."""
  position = FourierFeatures(num_bands=7, max_resolution=(num_bytes // NUM_TIMESTEPS,))
  return UnifiedPerceiverConfig(
    input_adapter=FeatureAdapterConfig(
      num_values=1, scale=2 / 255, shift=-1, num_projected_channels=width - position.num_channels, position=position
    ),
    latents=LearnedLatents(num_latents=NUM_LATENTS, num_timesteps=NUM_TIMESTEPS),
    num_latent_channels=width,
    num_self_attends_per_block=2,
    cross_attend=LayerConfig(num_heads=8),
    self_attend=LayerConfig(num_heads=8),
    decoder=DecoderConfig(queries=LearnedQueries(num_queries=1, num_channels=width), num_outputs=10),
  )


def byte_tokens(num_bytes: int, seed: int = 0) -> Tokens:
  """Random bytes, equally many a timestep; their place within it is their position."""
  values = np.random.default_rng(seed).integers(0, 256, (1, num_bytes), np.uint8)
  place = np.tile(np.linspace(-1, 1, num_bytes // NUM_TIMESTEPS, dtype=np.float32), NUM_TIMESTEPS)
  times = np.arange(NUM_TIMESTEPS, dtype=np.int32).repeat(num_bytes // NUM_TIMESTEPS)
  return Tokens(values=jnp.asarray(values), position=jnp.asarray(place)[None, :, None], time=jnp.asarray(times)[None])


def encode_generally(model: UnifiedPerceiver, inputs: Tokens) -> Tokens:
  """`model.encode` with the streamed read that any queries may use: T x S rows of logits for every byte."""
  steps = jnp.arange(NUM_TIMESTEPS, dtype=jnp.int32)
  q = repeat(model.question(inputs.batch_size), 'b h s k -> b h (t s) k', t=NUM_TIMESTEPS)
  query_time = repeat(steps, 't -> b (t s)', b=inputs.batch_size, s=NUM_LATENTS)
  latents = model.answer(read(q, model.sources(inputs), query_time=query_time), steps)
  return model.blocks[0](latents, num_latents_per_timestep=NUM_LATENTS, remat=True)


def loss_of(model: UnifiedPerceiver, inputs: Tokens, how: How) -> Float[Array, '']:
  """The cross-entropy of a label at each timestep."""
  latents = model.encode(inputs, remat=True) if how == 'prefix' else encode_generally(model, inputs)
  steps = jnp.arange(NUM_TIMESTEPS, dtype=jnp.int32)[None]
  logits = model.decode(latents, Tokens(values=jnp.zeros_like(steps), time=steps))
  return cross_entropy(logits, steps % 10)


def measure_bytes(num_bytes: int, how: How) -> dict[str, Any]:
  """One step, forward and backward: its `Cost`, and the `loss`, by which one sees that both reads compute the same."""
  enable_compilation_cache()
  model = filled(abstract(UnifiedPerceiver, byte_model(num_bytes)), scale=0.05)
  step = jax.value_and_grad(lambda model, tokens: loss_of(model, tokens, how))
  (loss, _), cost = measure(step, model, byte_tokens(num_bytes), calls=1)
  return {'how': how, 'num_bytes': num_bytes, 'loss': float(loss), **dataclasses.asdict(cost)}


def measure_in_fresh_process(log2_bytes: int, how: How) -> dict[str, Any]:
  """`measure_bytes` in a process of its own."""
  return in_fresh_process('perceiver_lib.lessons.unified_bytes:measure_bytes', num_bytes=2**log2_bytes, how=how)
