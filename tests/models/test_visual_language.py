import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.visual_language import Resampler, ResamplerConfig, VisualLanguageModel
from perceiver_lib.parameters import filled, frozen
from perceiver_lib.tokens import Tokens

LAYER = LayerConfig(num_heads=2, widening_factor=2)
RESAMPLER = ResamplerConfig(
  input_adapter=FeatureAdapterConfig(num_values=3, num_projected_channels=8),
  num_latents=2,
  num_latent_channels=8,
  num_layers=2,
  layer=LAYER,
)


@pytest.fixture(scope='module')
def language_model():
  config = PerceiverARConfig.of_bytes(num_channels=8, num_latents=5, num_self_attends=2, num_heads=2, vocabulary_size=7)
  return filled(PerceiverAR(config, rngs=nnx.Rngs(0)), scale=0.3)


@pytest.fixture(scope='module')
def model(language_model):
  resampler = Resampler(RESAMPLER, rngs=nnx.Rngs(1))
  whole = VisualLanguageModel(language_model, resampler, LAYER, num_visual_channels=8, rngs=nnx.Rngs(2))
  return frozen(whole, 'language_model')


@pytest.fixture(scope='module')
def text():
  return Tokens(values=np.random.default_rng(0).integers(0, 7, (2, 5)))


@pytest.fixture(scope='module')
def scene():
  return Tokens(values=np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32))


def test_with_closed_gates_it_is_the_language_model_to_the_last_bit(model, language_model, text, scene):
  expected = language_model(text)
  for inputs in (scene, None):
    found = model(text, inputs)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.time, expected.time)


def test_the_resampler_is_its_plain_statement(scene):
  resampler = filled(Resampler(RESAMPLER, rngs=nnx.Rngs(3)), scale=0.3)

  def norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * layer.scale[...][None, None] + layer.bias[...][None, None]

  def heads(x):
    return x.reshape(*x.shape[:2], 2, 4)

  inputs = resampler.input_adapter.projection(scene.values)
  x = jnp.broadcast_to(resampler.latents[...][None], (2, 2, 8))
  for layer in resampler.layers:
    own, attention = norm(layer.query_norm, x), layer.attention
    keys = jnp.concatenate([norm(layer.input_norm, inputs), own], axis=1)
    logits = jnp.einsum('bihk,bjhk->bhij', heads(attention.query(own)), heads(attention.key(keys))) / 4**0.5
    told = jnp.einsum('bhij,bjhv->bihv', jax.nn.softmax(logits), heads(attention.value(keys))).reshape(x.shape)
    x = x + attention.output(told)
    x = x + layer.mlp.down(jax.nn.gelu(layer.mlp.up(norm(layer.mlp_norm, x))))
  np.testing.assert_allclose(resampler(scene).values, x, atol=1e-5)
  np.testing.assert_allclose(resampler(scene, chunk_size=3).values, x, atol=1e-5)


def test_training_reaches_gates_and_resampler_and_nothing_of_the_language_model(model, text, scene):
  assert not [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)) if path[0] == 'language_model']

  def loss(model):
    return jax.nn.logsumexp(model(text, scene).values).sum()

  gradient = jax.jit(nnx.grad(loss))
  closed = gradient(model)
  assert all(
    float(jnp.abs(closed['gated'][i][gate][...])) > 0 for i in range(2) for gate in ('attention_gate', 'mlp_gate')
  )
  assert not np.any(closed['resampler']['latents'][...])
  opened = gradient(filled(model, scale=0.3))
  # A bias of keys moves all logits of a row alike.
  leaves = {path: leaf for path, leaf in nnx.to_flat_state(opened) if path[-2:] != ('key', 'bias')}
  assert len(leaves) > 40 and all(np.abs(leaf[...]).max() > 0 for leaf in leaves.values())


def test_whoever_sees_nothing_says_the_same_of_every_scene(model, text, scene):
  model = filled(model, scale=0.3)
  visual = model.resampler(scene)
  assert np.abs(model.answer(text, visual).values - model(text, None).values).max() > 0.01

  def blind(values):
    return model.answer(text, dataclasses.replace(visual, values=values, valid=jnp.zeros((2, 2), bool))).values

  np.testing.assert_array_equal(blind(visual.values), blind(visual.values[::-1] * jnp.nan))


def test_a_visual_token_with_a_time_is_seen_from_there_on(model, text, scene):
  model = filled(model, scale=0.3)
  visual = dataclasses.replace(model.resampler(scene), time=jnp.full((2, 2), 3, jnp.int32))
  changed = dataclasses.replace(visual, values=visual.values[::-1])
  difference = np.abs(model.answer(text, visual).values - model.answer(text, changed).values).max((0, 2))
  np.testing.assert_array_equal(difference[:3], 0)
  assert difference[3:].min() > 1e-4


def test_inputs_must_be_as_wide_as_the_latents():
  with pytest.raises(ValueError, match='as wide as the latents, 9 channels; got 8'):
    dataclasses.replace(RESAMPLER, num_latent_channels=9)
