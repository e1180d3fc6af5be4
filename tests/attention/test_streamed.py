"""That memory of a streamed read does not grow with the input; that it equals the reference is in `test_matrix`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.blocks import CrossAttention, LayerConfig
from perceiver_lib.positions import Rotary
from perceiver_lib.tokens import Tokens

BATCH, QUERIES, CHANNELS = 2, 5, 6


def test_compiled_memory_does_not_grow_with_the_input():
  config = LayerConfig(num_heads=2, qk_channels=8, v_channels=10, rotary=Rotary(fraction=0.5))
  adapter = EmbeddingAdapterConfig(num_embeddings=256, num_channels=7).build(nnx.Rngs(2))
  layer = CrossAttention(config, num_query_channels=CHANNELS, num_input_channels=7, rngs=nnx.Rngs(3))
  queries = Tokens(
    values=jnp.ones((BATCH, QUERIES, CHANNELS)), position=jnp.arange(QUERIES, dtype=jnp.int32)[None, :, None]
  )

  def temporary_bytes(num_inputs: int) -> int:
    def loss(modules, values, position):
      layer, adapter = modules
      tokens = Tokens(values=values, position=position)
      return jnp.sum(layer(queries, tokens, adapter, chunk_size=256).values)

    values = jax.ShapeDtypeStruct((BATCH, num_inputs), jnp.uint8)
    position = jax.ShapeDtypeStruct((1, num_inputs, 1), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower((layer, adapter), values, position).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = temporary_bytes(2**12), temporary_bytes(2**18)
  assert long < 1.05 * short + 2**16
