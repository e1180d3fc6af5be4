"""The one-pass causal read: NaN, maps, memory, refusals; that it equals the reference is in `test_matrix`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig
from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.attention.projections import KeyValueReader
from perceiver_lib.attention.timesteps import may_read, prefix_read
from perceiver_lib.blocks import CrossAttention, LayerConfig
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from tests.support import STREAMED, assert_close

BATCH, LATENTS, CHANNELS, INPUTS, FRAME = 2, 3, 5, 23, 13
LAYER = LayerConfig(num_heads=2, qk_channels=14, v_channels=22)


class Reader(nnx.Module):
  """Two modalities, bytes and pixels, under one attention."""

  def __init__(self):
    rngs = nnx.Rngs(3)
    self.layer = CrossAttention(LAYER, num_query_channels=CHANNELS, num_input_channels=7, rngs=rngs)
    self.bytes = EmbeddingAdapterConfig(num_embeddings=11, num_channels=7).build(rngs)
    position = FourierFeatures(num_bands=1, max_resolution=(FRAME,))
    self.pixels = FeatureAdapterConfig(num_values=3, num_projected_channels=4, position=position).build(rngs)

  def sources(self, inputs):
    attention, norm = self.layer.attention, self.layer.input_norm
    return [(tokens, KeyValueReader(getattr(self, name), norm, attention)) for name, tokens in inputs.items()]

  def queries(self, latents):
    return jnp.tile(self.layer.attention.project_queries(self.layer.query_norm(latents), None), (BATCH, 1, 1, 1))


def inputs_at(times, frame_times, seed=0, *, padded=True, shared_position=True):
  random = np.random.default_rng(seed)
  rows = 1 if shared_position else BATCH
  return {
    'bytes': Tokens(
      values=jnp.asarray(random.integers(0, 11, times.shape), jnp.uint8),
      time=jnp.asarray(times, jnp.int32),
      valid=jnp.asarray(random.random(times.shape) > 0.3) if padded else None,
    ),
    'pixels': Tokens(
      values=jnp.asarray(random.normal(size=(*frame_times.shape, 3)), jnp.float32),
      position=jnp.asarray(random.uniform(-1, 1, (rows, frame_times.shape[1], 1)), jnp.float32),
      time=jnp.asarray(frame_times, jnp.int32),
    ),
  }


def latents_of(seed=5):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(1, LATENTS, CHANNELS)), jnp.float32)


def test_may_read_is_the_matrix_of_its_docstring():
  time = jnp.array([[0, 1, 2, SOURCE_TIME]], jnp.int32)
  everything = [[1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
  assert np.array_equal(may_read(time, 3, None)[0], np.array(everything, bool))
  assert np.array_equal(may_read(time, 3, 1)[0], np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]], bool))


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_garbage_in_later_and_invalid_inputs_leaves_earlier_outputs_bit_identical(chunk_size):
  random = np.random.default_rng(2)
  frame_times = random.integers(0, 5, (BATCH, FRAME))
  inputs = inputs_at(random.integers(0, 5, (BATCH, INPUTS)), frame_times)
  valid = jnp.asarray(random.random(frame_times.shape) > 0.3)

  @jax.jit
  def read_frames(values, position):
    frame = Tokens(values=values, position=position, time=inputs['pixels'].time, valid=valid)
    sources = reader.sources(inputs | {'pixels': frame})
    return prefix_read(q, sources, num_timesteps=5, chunk_size=chunk_size)

  def output(values, position):
    return np.asarray(read_frames(values, position))

  reader = Reader()
  q = reader.queries(latents_of())
  position = jnp.broadcast_to(inputs['pixels'].position, (BATCH, FRAME, 1))
  spoiled = (frame_times > 2) | ~np.asarray(valid)
  clean = output(inputs['pixels'].values, position)
  for garbage in (jnp.nan, jnp.inf, 1e30):
    bad = output(*(jnp.where(spoiled[..., None], garbage, x) for x in (inputs['pixels'].values, position)))
    assert np.array_equal(bad[:, :, : 3 * LATENTS], clean[:, :, : 3 * LATENTS])
    assert not np.array_equal(bad[:, :, 3 * LATENTS :], clean[:, :, 3 * LATENTS :])


def test_attention_maps_are_the_same_for_every_chunk_size_and_sum_to_one():
  random = np.random.default_rng(4)
  inputs = inputs_at(random.integers(0, 3, (BATCH, INPUTS)), random.integers(0, 3, (BATCH, FRAME)))
  reader = Reader()
  q = reader.queries(latents_of())

  def map_of(chunk_size, **chosen):
    def run():
      return prefix_read(q, reader.sources(inputs), num_timesteps=3, window=2, chunk_size=chunk_size)

    return jax.jit(capture_attention(run, **chosen))()[1]['']

  dense, streamed = map_of(None), map_of(8)
  assert_close(streamed.weights, dense.weights, STREAMED)
  valid = jnp.pad(inputs['bytes'].valid, ((0, 0), (0, FRAME)), constant_values=True)[:, None]
  allowed = may_read(jnp.concatenate([inputs['bytes'].time, inputs['pixels'].time], axis=1), 3, 2)
  assert np.array_equal(np.asarray(dense.weights[:, 0]) > 0, np.asarray(allowed & valid).repeat(LATENTS, axis=1))
  np.testing.assert_allclose(dense.weights.sum(-1), 1, atol=1e-5)
  few = map_of(8, heads=[1], queries=[2, 7])
  assert_close(few.weights, dense.weights[:, 1:, jnp.array([2, 7])], STREAMED)


def test_compiled_memory_does_not_grow_with_the_input():
  reader = Reader()

  def temporary_bytes(num_inputs):
    def loss(reader, latents, values, time):
      tokens = {'bytes': Tokens(values=values, time=time)}
      read = prefix_read(reader.queries(latents), reader.sources(tokens), num_timesteps=5, chunk_size=256)
      return jnp.sum(read)

    shapes = [jax.ShapeDtypeStruct((BATCH, num_inputs), dtype) for dtype in (jnp.uint8, jnp.int32)]
    compiled = jax.jit(jax.grad(loss)).lower(reader, latents_of(), *shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = temporary_bytes(2**12), temporary_bytes(2**18)
  # Sorting needs a few integers a token; the channels of a token alone would be 80 bytes.
  assert long - short < 40 * BATCH * 2**18


def test_refuses_inputs_without_a_time_and_an_empty_window():
  reader, q = Reader(), Reader().queries(latents_of())
  tokens = {'bytes': Tokens(values=jnp.zeros((BATCH, 3), jnp.uint8))}
  with pytest.raises(ValueError, match='needs a time for every input'):
    prefix_read(q, reader.sources(tokens), num_timesteps=3)
  timed = {'bytes': Tokens(values=jnp.zeros((BATCH, 3), jnp.uint8), time=jnp.zeros((BATCH, 3), jnp.int32))}
  with pytest.raises(ValueError, match='at least 1 timestep; got 0'):
    prefix_read(q, reader.sources(timed), num_timesteps=3, window=0)
