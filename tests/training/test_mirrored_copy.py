"""Crops that train every byte as often, and an accuracy that is exact for a model that is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perceiver_lib.data.mirrored_copy import copy_batch
from perceiver_lib.modalities.text import BOS, EOS, VOCAB_SIZE
from perceiver_lib.models.last_inputs import gathered, last_valid, validity
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.mirrored_copy import copy_accuracy, crop_ends
from perceiver_lib.training.sequences import examples_of, keep_last


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


def test_no_byte_of_the_second_half_is_trained_less_often_than_the_others():
  last = np.asarray(crop_ends(jax.random.key(0), 4_000, 22, 5)) - 1
  inputs = np.arange(10, 21)
  share = ((last - 5 < inputs) & (inputs <= last)).mean(axis=0)
  np.testing.assert_allclose(share[:6], 5 / 15, atol=0.03)
  assert share.min() > 0.3


def test_the_ideal_copier_is_right_at_every_distance_and_blind_beyond_a_window():
  distance, accuracy = copy_accuracy(Mirror(), copy_batch(22, 3, seed=1), num_latents=5)
  np.testing.assert_array_equal(distance, np.arange(1, 21, 2))
  np.testing.assert_array_equal(accuracy, 1.0)
  distance, accuracy = copy_accuracy(Mirror(), copy_batch(22, 3, seed=1), num_latents=7, window=7)
  np.testing.assert_array_equal(accuracy, distance <= 7)


def test_a_model_with_a_window_ignores_what_is_before_it():
  examples = examples_of(copy_batch(22, 2, seed=0))
  model = filled(PerceiverAR(PerceiverARConfig.tiny(VOCAB_SIZE), rngs=nnx.Rngs(0)), scale=0.1)

  @nnx.jit
  def outputs(model, ids, window):
    changed = dataclasses.replace(examples, inputs=dataclasses.replace(examples.inputs, values=ids))
    return model(keep_last(changed, window).inputs, num_latents=7).values

  ids = examples.inputs.values
  far = ids.at[:, 3].add(1)
  np.testing.assert_array_equal(outputs(model, ids, 7), outputs(model, far, 7))
  assert np.abs(outputs(model, ids, 22) - outputs(model, far, 22)).max() > 1e-4
