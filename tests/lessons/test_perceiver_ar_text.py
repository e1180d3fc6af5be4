"""What notebook 06 measures means what it says: the copy task, its window, and bits of bytes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.lessons import mirrored_copy as copying
from perceiver_lib.lessons import perceiver_ar_text as recipe_of
from perceiver_lib.lessons import text_probes as probes
from perceiver_lib.modalities.text import BOS, EOS, NUM_SPECIAL, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.last_inputs import gathered, last_valid, validity
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.optimizers import layer_kernels
from tests.support import assert_close

SMOKE = recipe_of.RECIPES['smoke']
RUNG = copying.Rung(length=22, num_latents=5, batch_size=3, num_steps=1)


class Mirror(nnx.Module):
  """Copies the input at minus its own position if that is visible, and says 'start' if not: the task's ideal."""

  def __call__(self, inputs: Tokens, *, num_latents: int, rngs: nnx.Rngs | None = None) -> Tokens:
    time = last_valid(validity(inputs), num_latents)
    mirrored = -gathered(inputs.position, time)[:, :, 0]
    is_source = (inputs.position[:, None, :, 0] == mirrored[:, :, None]) & validity(inputs)[:, None]
    token = jnp.where(is_source.any(-1), jnp.where(is_source, inputs.values[:, None], 0).sum(-1), BOS)
    # The mirror of the last copied byte is the start token, behind which the sequence ends.
    values = jax.nn.one_hot(jnp.where(token == BOS, EOS, token), VOCAB_SIZE)
    return Tokens(values=values, time=time, valid=time >= 0)


def perturbed(seed: int = 0) -> PerceiverAR:
  return filled(PerceiverAR(recipe_of.language_config(SMOKE), rngs=nnx.Rngs(seed)), scale=0.1, seed=seed)


def test_a_sequence_is_its_own_mirror_image_and_positions_of_a_byte_and_its_copy_sum_to_zero():
  batch = copying.copy_batch(22, 3, seed=0, step=0)
  ids, position = batch['ids'], batch['position'][:, :, 0]
  assert (ids[:, 0] == BOS).all() and (ids[:, -1] == EOS).all() and ids[:, 1:-1].min() >= NUM_SPECIAL
  np.testing.assert_array_equal(ids[:, 1:11], ids[:, 11:21][:, ::-1])
  for target in range(11, 21):
    source = 21 - target
    assert (ids[:, target] == ids[:, source]).all()
    assert (position[:, target - 1] == -position[:, source]).all()
  np.testing.assert_array_equal(ids, copying.copy_batch(22, 3, seed=0, step=0)['ids'])
  assert (ids != copying.copy_batch(22, 3, seed=0, step=1)['ids']).any()


def test_only_the_second_half_is_scored():
  batch = copying.copy_batch(22, 3, seed=0, step=0)
  examples = copying.copy_examples(jnp.asarray(batch['ids']), jnp.asarray(batch['position']))
  np.testing.assert_array_equal(examples.scored[0], np.arange(1, 22) >= 11)


def test_no_byte_of_the_second_half_is_trained_less_often_than_the_others():
  last = np.asarray(copying.crop_lengths(jax.random.key(0), 4_000, RUNG.length, RUNG.num_latents)) - 1
  inputs = np.arange(RUNG.length // 2 - 1, RUNG.length - 1)
  share = ((last - RUNG.num_latents < inputs) & (inputs <= last)).mean(axis=0)
  np.testing.assert_allclose(share[:6], 5 / 15, atol=0.03)
  assert share.min() > 0.3


def test_the_ideal_copier_is_right_at_every_distance_and_blind_beyond_a_window():
  distance, accuracy = copying.copy_accuracy(Mirror(), RUNG, 0, num_sequences=3)
  np.testing.assert_array_equal(distance, np.arange(1, 21, 2))
  np.testing.assert_array_equal(accuracy, 1.0)
  rung = dataclasses.replace(RUNG, num_latents=7)
  distance, accuracy = copying.copy_accuracy(Mirror(), rung, 0, window=7, num_sequences=3)
  np.testing.assert_array_equal(accuracy, distance <= 7)


def test_a_model_with_a_window_ignores_what_is_before_it():
  batch = copying.copy_batch(22, 2, seed=0, step=0)
  examples = copying.copy_examples(jnp.asarray(batch['ids']), jnp.asarray(batch['position']))
  model = copying.copy_model(SMOKE.copy, 0)
  model.head.kernel[...] = jax.random.normal(jax.random.key(0), model.head.kernel.shape)

  def outputs(ids, window):
    inputs = dataclasses.replace(examples.inputs, values=ids)
    changed = copying.last_inputs(dataclasses.replace(examples, inputs=inputs), window)
    return np.asarray(probes.outputs(model, changed.inputs, 7).values)

  ids = examples.inputs.values
  far = ids.at[:, 3].add(1)
  np.testing.assert_array_equal(outputs(ids, 7), outputs(far, 7))
  assert np.abs(outputs(ids, 22) - outputs(far, 22)).max() > 1e-4


def test_muon_takes_the_kernels_of_layers_and_adam_the_rest():
  chosen = layer_kernels(nnx.state(perturbed(), nnx.Param))
  for path, dimensions in nnx.to_flat_state(chosen):
    name = '.'.join(map(str, path))
    assert (dimensions.get_value() is not None) == (name.endswith('kernel') and not name.startswith('head')), name


def test_bits_of_each_byte_are_those_of_the_softmax():
  model, text = perturbed(), np.frombuffer(b'the sound and the fury', np.uint8)
  bits = probes.bits_of_each_byte(model, text, 13)
  ids = ByteTokenizer.ids(text)
  logits = np.asarray(probes.outputs(model, Tokens(values=jnp.asarray(ids[:-1])[None]), 13).values[0], np.float64)
  expected = np.log2(np.exp(logits).sum(-1)) - logits[np.arange(13), ids[-13:]] / np.log(2)
  assert_close(bits, expected)


def test_an_untrained_model_costs_the_logarithm_of_the_vocabulary():
  model = PerceiverAR(recipe_of.language_config(SMOKE), rngs=nnx.Rngs(0))
  documents = [ByteTokenizer().encode('a sea-change into something rich and strange'), ByteTokenizer().encode('O')]
  score = recipe_of.bits_of(model, documents, SMOKE, stride=7)
  assert score.num_tokens == sum(map(len, documents))
  assert score.bits_per_byte == pytest.approx(np.log2(VOCAB_SIZE), abs=1e-5)


def test_every_profile_has_settings_that_fit_together():
  assert set(recipe_of.RECIPES) == set(PROFILES)
  for recipe in recipe_of.RECIPES.values():
    lengths = [rung.length for rung in recipe.copy.ladder]
    assert lengths == sorted(lengths)
    assert all(rung.num_latents < rung.length // 2 for rung in recipe.copy.ladder)
    assert recipe.copy.window <= recipe.copy.ladder[recipe.copy.windowed_rung].num_latents
    assert recipe.stride <= recipe.num_latents and max(recipe.strides) <= recipe.num_latents
    assert max(recipe.contexts + recipe.latent_numbers) <= recipe.context_length
  assert recipe_of.RECIPES['paper'].copy.ladder[-1].length == 131_072
