from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.parameters import abstract
from perceiver_lib.tokens import Tokens
from tests.reference import make_golden
from tests.support import GOLDEN, STREAMED, as_users_call, assert_close, compiled, renamed, set_parameters

ADAPTER = pixel_adapter((5, 7, 1), num_bands=3)
TINY = PerceiverConfig.tiny(ADAPTER, num_outputs=3)
MODEL = Perceiver(TINY, rngs=nnx.Rngs(0))
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 1)), jnp.uint8)


def test_golden_perceiver_with_three_reads():
  inputs, parameters, outputs = make_golden.load('perceiver')
  widths = {'qk_channels': make_golden.QK_CHANNELS, 'v_channels': make_golden.V_CHANNELS}
  config = PerceiverConfig(
    input_adapter=FeatureAdapterConfig(num_values=make_golden.INPUT_CHANNELS),
    num_latents=make_golden.LATENTS,
    num_latent_channels=make_golden.LATENT_CHANNELS,
    num_outputs=make_golden.OUTPUTS,
    num_cross_attends=3,
    num_blocks=3,
    num_self_attends_per_block=2,
    cross_attend=LayerConfig(num_heads=1, **widths),
    self_attend=LayerConfig(num_heads=make_golden.HEADS, **widths),
  )
  model = abstract(Perceiver, config)
  set_parameters(model, renamed(parameters, **{'decoder.output': 'head'}))
  tokens = Tokens(values=jnp.asarray(inputs['inputs']), valid=jnp.asarray(inputs['valid']))
  for chunk_size in (None, 5):

    def both(model, size=chunk_size):
      return model.encode(tokens, chunk_size=size).values, model(tokens, chunk_size=size)

    latents, logits = compiled(both, model)
    assert_close(latents, outputs['latents'], GOLDEN)
    assert_close(logits, outputs['logits'], GOLDEN)


apply = jax.jit(MODEL)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), padding=st.sampled_from([0, 7]))
def test_neither_order_nor_padding_of_the_input_matters(seed, padding):
  random = np.random.default_rng(seed)
  tokens = pixel_tokens(IMAGES)
  logits = apply(tokens)
  order = random.permutation(tokens.num_tokens + padding)

  def padded(array, fill):
    garbage = np.full((array.shape[0], padding, *array.shape[2:]), fill, array.dtype)
    return jnp.asarray(np.concatenate([array, garbage], axis=1)[:, order])

  position = np.broadcast_to(tokens.position, (2, *tokens.position.shape[1:]))
  shuffled = Tokens(
    values=padded(np.asarray(tokens.values), 200),
    position=padded(position, np.nan),
    valid=padded(np.ones((2, tokens.num_tokens), bool), False),
  )
  assert_close(apply(shuffled), logits)


def test_streamed_equals_dense_through_the_whole_model():
  streamed, dense = (compiled(MODEL, pixel_tokens(IMAGES), chunk_size=size) for size in (4, None))
  assert_close(streamed, dense, STREAMED)


def test_reads_are_spread_over_the_blocks_or_all_come_first():
  config = dataclasses.replace(TINY, num_blocks=8, num_cross_attends=4)
  assert [list(config.reads_before_block(block)) for block in range(8)] == [[0], [], [1], [], [2], [], [3], []]
  config = dataclasses.replace(config, num_cross_attends=3)
  assert [i for block in range(8) for i in config.reads_before_block(block)] == [0, 1, 2]
  start = dataclasses.replace(config, cross_attend_schedule='start')
  assert [list(start.reads_before_block(block)) for block in range(3)] == [[0, 1, 2], [], []]
  with pytest.raises(ValueError, match='1 to 2; got 3'):
    dataclasses.replace(TINY, num_cross_attends=3)
  with as_users_call(), pytest.raises(ValueError, match="all, all_but_first, none; got 'some'"):
    dataclasses.replace(TINY, block_sharing='some')


@pytest.mark.parametrize('field', ['cross_attend_sharing', 'block_sharing'])
def test_sharing_sets_the_number_of_weights_and_unshared_weights_matter(field):
  counts = {}
  for sharing in ('all', 'all_but_first', 'none'):
    config = dataclasses.replace(TINY, num_cross_attends=3, num_blocks=3, **{field: sharing})
    model = Perceiver(config, rngs=nnx.Rngs(0))
    layers = model.cross_attends if field == 'cross_attend_sharing' else model.blocks
    counts[sharing] = len(layers)
    gradients = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(pixel_tokens(IMAGES))))))(model)
    assert all(
      np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(nnx.state(gradients, nnx.Param)) if leaf.ndim == 2
    )
  assert counts == {'all': 1, 'all_but_first': 2, 'none': 3}


def test_an_input_of_another_length_is_read_by_the_same_weights():
  larger = jnp.concatenate([IMAGES, IMAGES], axis=1)
  assert apply(pixel_tokens(larger)).shape == (2, 3)
