from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.capture import capture_attention
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from tests.support import STREAMED, assert_close, compiled

CONFIG = PerceiverConfig.tiny(pixel_adapter((5, 7, 1), num_bands=3), num_outputs=3)
MODEL = Perceiver(CONFIG, rngs=nnx.Rngs(0))
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 1)), jnp.uint8)


@pytest.mark.parametrize('chunk_size', [None, 8])
def test_captured_outputs_are_the_plain_outputs(chunk_size):
  def run(images):
    return MODEL(pixel_tokens(images), chunk_size=chunk_size, remat=True)

  output, maps = jax.jit(capture_attention(run))(IMAGES)
  assert_close(output, jax.jit(run)(IMAGES))
  assert list(maps) == sorted(maps, key=list(maps).index) and set(maps) == {
    'encoder.cross_attention.0',
    'encoder.cross_attention.1',
    'processor.0',
    'processor.1',
  }
  first = maps['encoder.cross_attention.0']
  assert first.weights.shape == first.logits.shape == (2, 1, CONFIG.num_latents, 35)
  np.testing.assert_allclose(first.weights.sum(axis=-1), 1, atol=1e-6)
  assert_close(jax.nn.softmax(first.logits, axis=-1), first.weights)


def test_streamed_maps_equal_dense_ones_for_the_chosen_latents():
  _, dense = compiled(capture_attention(lambda: MODEL(pixel_tokens(IMAGES))))
  chosen = {'names': ['encoder'], 'heads': [0], 'queries': [6, 2]}
  _, few = compiled(capture_attention(lambda: MODEL(pixel_tokens(IMAGES), chunk_size=11), **chosen))
  assert set(few) == {'encoder.cross_attention.0', 'encoder.cross_attention.1'}
  for name, one in few.items():
    assert one.weights.shape == (2, 1, 2, 35)
    assert_close(one, jax.tree.map(lambda array: array[:, :, [6, 2]], dense[name]), STREAMED)


def test_names_match_component_by_component():
  names = ['encoder.cross_attention.1', 'process']
  _, maps = compiled(capture_attention(lambda: MODEL(pixel_tokens(IMAGES)), names=names))
  assert set(maps) == {'encoder.cross_attention.1'}
