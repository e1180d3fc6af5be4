"""Notebook 09's measures on maps that are known, its data, and that deletions and snapshots mean what they say."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.data.mirrored_copy import copy_batch
from perceiver_lib.lessons import attention_maps as lesson
from perceiver_lib.lessons.unified_io_ar_tasks import missed
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.sequences import examples_of
from tests.support import ROUNDING

RANDOM = np.random.default_rng(0)


def test_a_tartan_is_all_stripes_and_noise_has_the_share_that_is_stated():
  rows, columns = RANDOM.standard_normal((4, 9, 1)), RANDOM.standard_normal((4, 1, 7))
  assert lesson.stripes_share(rows + columns) == pytest.approx(1)
  noise = RANDOM.standard_normal((20_000, 5, 4))
  assert lesson.stripes_share(noise) == pytest.approx((5 + 4 - 2) / (5 * 4 - 1), abs=0.01)


def test_likeness_knows_copies_and_negatives():
  values = RANDOM.standard_normal((3, 50))
  assert lesson.likeness(np.stack([values, 2 - 3 * values], axis=1), values) == pytest.approx(1)
  assert lesson.likeness(RANDOM.standard_normal((3, 40, 50)), values) < 0.1


def test_the_three_kinds_are_found_where_they_were_put():
  """Four maps over 16 places: one place, every fourth place, the spaces, and flat."""
  text = RANDOM.choice(np.frombuffer(b'ab .', np.uint8), (64, 16))
  is_space = (text == ord(' ')) + 1e-6
  place = np.zeros((64, 16))
  place[:, 5] = 1
  periodic = np.tile((np.arange(16) % 4 == 0) / 4.0, (64, 1))
  maps = np.stack([np.full((64, 16), 1 / 16), periodic, is_space / is_space.sum(1, keepdims=True), place], axis=1)
  chosen = lesson.three_kinds(maps[:, None], text)
  assert [one.latent for one in chosen] == [3, 1, 2]
  assert chosen[0].position_share == pytest.approx(1) and chosen[2].position_share < 0.3
  assert chosen[1].num_places == pytest.approx(4, rel=1e-3)
  liked = lesson.preferences(maps[:, None], text)
  assert max(liked, key=lambda kind: liked[kind][0, 2]) == 'a space or line break'
  assert all(kind[0, 0] == pytest.approx(1) for kind in liked.values() if kind.any())


def test_word_starts_are_letters_behind_no_letter():
  text = np.frombuffer(b"To be, 'tis", np.uint8)[None]
  assert np.flatnonzero(lesson.word_starts(text)[0]).tolist() == [0, 3, 8]


def test_a_perfect_lookup_has_all_mass_and_a_flat_one_what_is_stated():
  length = 16
  inputs = examples_of(copy_batch(length, 2, seed=0)).inputs
  last = np.tile(np.arange(length // 2 - 1, length - 1), (2, 1))
  perfect = np.zeros((2, 1, last.shape[1], length - 1))
  flat = np.zeros_like(perfect)
  for n, t in enumerate(last[0]):
    perfect[:, 0, n, length - 2 - t], flat[:, 0, n, : t + 1] = 1, 1 / (t + 1)
  assert lesson.lookup_mass(perfect, last, length) == pytest.approx(1)
  assert lesson.lookup_mass(flat, last, length)[0] == pytest.approx(lesson.uniform_mass(last, length))
  ids = np.asarray(inputs.values)
  copied = last[0][:-1]  # the last one is followed by the end token
  assert np.array_equal(ids[:, copied + 1], ids[:, length - 2 - copied])


def test_a_profile_averages_over_allowed_pairs_only():
  weights = np.arange(6.0).reshape(1, 1, 2, 3)
  offset, allowed = np.array([[0, 1, 2], [-1, 0, 1]]), np.array([[True, True, False], [True, True, True]])
  offsets, means = lesson.profile(weights, offset, allowed)
  assert offsets.tolist() == [-1, 0, 1] and means.tolist() == [[3, 2, 3]]


def test_a_map_on_the_copied_symbol_is_right_and_a_flat_one_has_its_share():
  copied = np.array([[2, -1, 0], [3, 1, 1]])
  readable = np.array([[True, True, True, False], [True] * 4])
  right = np.zeros((2, 3, 4))
  np.put_along_axis(right, np.maximum(copied, 0)[..., None], 5.0, axis=-1)
  right[0, 0, 3] = 99  # padding
  assert lesson.on_truth(right, copied, readable) == (100, 100)
  # Only the first and the last output copy in both examples.
  assert lesson.on_truth(np.zeros((2, 3, 4)), copied, readable).mass == pytest.approx(100 * (1 / 3 + 1 / 4) / 2)


def test_what_an_output_copies_is_missed_has_the_gradient_and_is_followed():
  """A stand-in whose output t says the symbol at place t + 1 of the source, whatever is known."""

  class Copies(nnx.Module):
    def __init__(self):
      self.input_adapter = lambda tokens: jax.nn.one_hot(tokens.values, 7)

  def logits(model, source, known):
    tokens = Tokens(values=jnp.concatenate([source, known], axis=1))
    return 4 * model.input_adapter(tokens)[:, 1 : 1 + known.shape[1]]

  source = np.array([[2, 3, 4, 5, 0], [6, 2, 2, 3, 4]], np.int32)
  target, copied = source[:, 1:3], np.array([[1, 2], [1, 2]])
  for maps in (
    missed(logits, Copies(), jnp.asarray(source), jnp.asarray(target)),
    np.asarray(lesson.gradient_times_input(logits, Copies(), jnp.asarray(source), jnp.asarray(target))),
  ):
    assert lesson.on_truth(maps, copied, source != 0) == (100, 100)
  rows = {'source': source, 'target': target, 'copied': copied}
  followed = lesson.follows_its_source(logits, Copies(), rows, digits=np.arange(2, 7))
  assert followed.itself == 100 and followed.another == 0


def test_deleting_the_only_input_that_counts_ruins_the_answer():
  attended, needed = RANDOM.random((5, 12)), np.array([3, 0, 11, 7, 7])
  attended[np.arange(5), needed] = 2
  removable = np.ones((5, 12), bool)
  removable[:, 1] = False

  def quality(valid):
    assert valid[:, 1].all()
    return valid[np.arange(5), needed].astype(np.float64)

  curves = lesson.deletion_curves(quality, attended, removable, [0, 1, 10, 11], rule=-attended, seed=0)
  assert curves['most attended'].tolist() == [1, 0, 0, 0]
  assert curves['least attended'].tolist() == curves['by a simple rule'].tolist() == [1, 1, 1, 0]
  assert curves['at random'][0] == 1 and curves['at random'][-1] == 0


def test_looking_changes_nothing_and_a_rollout_is_a_distribution():
  model = Perceiver(PerceiverConfig.tiny(pixel_adapter((6, 5, 1), num_bands=2), 3), rngs=nnx.Rngs(0))
  tokens = pixel_tokens(jnp.asarray(RANDOM.integers(0, 256, (4, 6, 5, 1)).astype(np.uint8)))
  looked = lesson.look(lambda model, tokens: model(tokens), model, tokens, compare=True)
  assert looked.difference < ROUNDING and len(looked.maps) == 4
  assert looked.rollout.shape == (4, 8, 30)
  np.testing.assert_allclose(looked.rollout.sum(-1), 1, atol=1e-5)
  quality = lesson.probability_of(
    lambda valid: model(dataclasses.replace(tokens, valid=valid)), np.array([0, 1, 2, 0], np.int32)
  )
  valid = np.ones((4, 30), bool)
  valid[0, :20] = False
  some, every = quality(valid), quality(np.ones_like(valid))
  assert some[0] != every[0] and np.array_equal(some[1:], every[1:])
