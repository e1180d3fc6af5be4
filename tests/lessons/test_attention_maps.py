"""Notebook 09's measures on maps that are known, its data, and that deletions and snapshots mean what they say."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perceiver_lib.data import pronunciation as words
from perceiver_lib.lessons import attention_maps as lesson
from perceiver_lib.lessons.unified_io_ar_tasks import missed
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.scores import attention_maps as measured
from perceiver_lib.tokens import Tokens
from tests.support import ROUNDING

RANDOM = np.random.default_rng(0)


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
    assert measured.on_truth(maps, copied, source != 0) == (100, 100)
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


def test_pairs_are_known_where_letter_and_phoneme_stand_once_and_maps_are_scored_there():
  letters = words.letter_ids(['dance', 'bat', 'tot'])
  phonemes = np.zeros((3, 5), np.int32)
  for row, said in zip(phonemes, ('D AE N S', 'B AE T', 'T AA T'), strict=True):
    row[: len(said.split())] = [words.FIRST_PHONEME + words.PHONEMES.index(one) for one in said.split()]
  pairs = lesson.known_pairs(letters, phonemes)
  assert sorted(zip(*pairs, strict=True)) == [(0, 0, 0), (0, 2, 2), (1, 0, 0), (1, 2, 2)]
  maps = np.broadcast_to(np.eye(5, letters.shape[1]), (3, 5, letters.shape[1]))
  assert pairs.score(maps, letters) == (100, 100)
  assert pairs.score(np.roll(maps, 1, axis=2), letters).largest == 0
  others = lesson.of_another_word(np.arange(3.0)[:, None, None] * np.ones((3, 1, 14)), letters)
  assert others[:, 0, 0].tolist() == [2, 0, 1]
