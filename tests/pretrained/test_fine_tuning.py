"""Released weights under a new decoder and at another image size: what is frozen stays to the bit, the rest learns."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from perceiver_lib import LayerConfig, Tokens, cross_entropy, fit, load_pretrained
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.parameters import count, frozen
from perceiver_lib.positions import resampled
from perceiver_lib.queries import LearnedQueries
from tests.pretrained.golden_files import golden
from tests.support import compiled


def test_a_classification_query_learns_while_the_encoder_stays_as_released(tmp_path):
  case = golden('hugging_face_language')
  released = load_pretrained(case.write(tmp_path))
  asked = DecoderConfig(
    queries=LearnedQueries(num_queries=1, num_channels=12), num_outputs=3, cross_attend=LayerConfig(num_heads=1)
  )
  model = released.with_decoder(asked, rngs=nnx.Rngs(0))
  model = frozen(model, 'input_adapter', 'latents', 'cross_attends', 'blocks')
  assert count(model) == count(model.decoder) > 0

  def loss(model, batch, rngs):
    position = jnp.arange(batch['ids'].shape[1])[None, :, None]
    logits = model(Tokens(values=batch['ids'], position=position, valid=batch['valid']))
    return cross_entropy(logits[:, 0], batch['label']), {}

  batch = {'ids': case.inputs['ids'], 'valid': case.inputs['valid'], 'label': np.array([2, 0])}

  def batches(step):
    while True:
      yield dict(batch)

  result = fit(model, loss, batches, optimizer=optax.adam(0.03), num_steps=10, seed=0, log_every=1, progress='silent')
  losses = result.curve('train_loss')[1]
  assert losses[-1] < losses[0] / 2
  found, expected = (dict(nnx.to_flat_state(nnx.state(one))) for one in (result.model, released))
  kept = [path for path in expected if path[0] != 'decoder']
  assert len(kept) > 30
  for path in kept:
    np.testing.assert_array_equal(found[path][...], expected[path][...], err_msg=str(path))


def test_learned_positions_go_to_another_image_size(tmp_path):
  released = load_pretrained(golden('hugging_face_learned').write(tmp_path))
  table = np.asarray(released.input_adapter.position.table[...])
  larger = released.with_grid((5, 4))
  image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 3)), jnp.float32)
  assert np.isfinite(compiled(larger, pixel_tokens(image, integer_positions=True))).all()
  expected = resampled(table.reshape(3, 3, -1), (5, 4)).reshape(20, -1)
  np.testing.assert_allclose(larger.input_adapter.position.table[...], expected, rtol=1e-6)
  np.testing.assert_array_equal(released.with_grid((3, 3)).input_adapter.position.table[...], table)
  np.testing.assert_array_equal(released.input_adapter.position.table[...], table)
  with pytest.raises(ValueError, match='no table'):
    released.with_grid((5, 4, 3))
