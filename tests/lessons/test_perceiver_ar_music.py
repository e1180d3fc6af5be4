"""What notebook 07 measures means what it says: orders, positions, given voices, and a teacher's marks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flax import nnx

from perceiver_lib.data.chorales import ChoraleSource
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.generation.stream import Sampler
from perceiver_lib.lessons import music_probes as probes
from perceiver_lib.lessons import perceiver_ar_music as recipe_of
from perceiver_lib.modalities import music
from perceiver_lib.models.perceiver_ar import PerceiverAR
from tests.support import STREAMED, assert_close

SMOKE = dataclasses.replace(recipe_of.RECIPES['smoke'], num_steps=16, num_latents=16)


@pytest.fixture(scope='module')
def pieces() -> ChoraleSource:
  """Three pieces whose voices walk up and down in thirds."""
  random = np.random.default_rng(0)
  t, lengths = 37, np.array([37, 24, 33], np.int32)
  walk = np.cumsum(random.integers(-2, 3, (3, t, 4)), axis=1)
  pitch = np.clip(np.array([72, 66, 60, 50]) + walk, 40, 80).astype(np.int16)
  onset = random.random((3, t, 4)) < 0.6
  behind = np.arange(t) >= lengths[:, None]
  pitch[behind], onset[behind] = -1, False
  in_bar = np.broadcast_to((np.arange(t) % 8).astype(np.int16), (3, t))
  return ChoraleSource({'pitch': pitch, 'onset': onset, 'step_in_bar': in_bar, 'num_steps': lengths}, ('a', 'b', 'c'))


@pytest.fixture(scope='module')
def model() -> PerceiverAR:
  return probes.random_model(SMOKE, 0)


def test_an_untrained_model_costs_the_logarithm_of_the_vocabulary(pieces):
  model = PerceiverAR(recipe_of.music_config(SMOKE), rngs=nnx.Rngs(0))
  score = recipe_of.score_of(model, pieces.arrays, SMOKE)
  assert score.nats_per_token == pytest.approx(np.log(music.VOCABULARY_SIZE), abs=1e-5)


def test_scores_are_those_of_one_pass_over_whole_pieces_where_all_tokens_are_latents(pieces, model):
  recipe = dataclasses.replace(SMOKE, num_steps=39, num_latents=4 * 39, stride=38)
  for order in recipe_of.ORDERS:
    batch = music.tokens(music.score(pieces.arrays), order)
    examples = recipe_of.examples_of(batch)
    logits = np.asarray(recipe_of.outputs(model, examples.inputs, 4 * 39).values, np.float64)
    time = np.asarray(recipe_of.outputs(model, examples.inputs, 4 * 39).time)
    total, count = 0.0, 0
    for row in range(3):
      for latent, at in enumerate(time[row]):
        if at >= 0 and examples.scored[row, at]:
          target = int(examples.targets[row, at])
          total += np.log(np.exp(logits[row, latent]).sum()) - logits[row, latent, target]
          count += 1
    score = recipe_of.score_of(model, pieces.arrays, recipe, order)
    # A window ends with what it scores, so the last latents know as much as here.
    assert score.nats_per_token == pytest.approx(total / count, rel=1e-5)


def test_every_batch_holds_both_orders(pieces):
  transform = recipe_of.windows_in_orders(16, recipe_of.ORDERS)
  batch = transform(pieces.arrays, np.random.default_rng(0))
  voices = batch['position'][..., 1]
  assert (voices[:2, :4] == [0, 1, 2, 3]).all() and (voices[2, :16] == 0).all()
  assert batch['ids'].shape == (3, 64) and not batch['scored'][2, :16].any()


def test_training_measures_each_order(pieces):
  model = PerceiverAR(recipe_of.music_config(SMOKE), rngs=nnx.Rngs(1))
  result = recipe_of.train_music(model, pieces, pieces.arrays, recipe=SMOKE, seed=3, evaluations=1)
  for order in recipe_of.ORDERS:
    assert result.history[-1][f'{order}_nats_per_token'] < np.log(music.VOCABULARY_SIZE)


def test_gradients_know_what_each_order_makes_known(pieces, model):
  for order in recipe_of.ORDERS:
    score = {name: array[:1, :6] for name, array in music.score(pieces.arrays).items()}
    batch = music.tokens(score, order)
    gradient = np.asarray(probes.influence(model, recipe_of.examples_of(batch).inputs, 23))
    np.testing.assert_array_equal(gradient > 0, np.tril(np.ones((23, 23), bool)))


def test_a_prefix_in_another_order_is_the_same_prefix_if_its_positions_move_along(pieces, model):
  batch = probes.long_windows(pieces.arrays, dataclasses.replace(SMOKE, num_steps=24), count=2)
  inputs = recipe_of.examples_of(batch).inputs
  plain, moved, stayed = (
    recipe_of.outputs(model, changed, 16).values
    for changed in (
      inputs,
      probes.with_shuffled_prefix(inputs, 16, seed=1, move_positions=True),
      probes.with_shuffled_prefix(inputs, 16, seed=1, move_positions=False),
    )
  )
  assert_close(moved, plain, STREAMED)
  assert np.abs(stayed - plain).max() > 1e-2


def test_weights_by_voice_and_time_sum_to_the_share_that_is_near(pieces, model):
  batch = probes.long_windows(pieces.arrays, SMOKE, count=2)
  inputs = recipe_of.examples_of(batch).inputs
  weights = np.asarray(probes.read_weights(model, inputs, 16))
  time = np.asarray(recipe_of.outputs(model, inputs, 16).time)
  back = probes.look_back(weights, np.asarray(inputs.position), time, 16)
  assert back.shape == (2, 4, 16)
  np.testing.assert_allclose(back.sum((1, 2)), 1, rtol=1e-5)
  # The newest step's bass is known to a latent on the bass alone: a quarter of the latents.
  assert back[:, 3, 0].max() < back[:, 0, 0].max()


def test_what_is_given_stays_and_what_is_written_can_be_repeated(pieces, model):
  recipe, settings = dataclasses.replace(SMOKE, num_latents=32), {'sampler': Sampler(temperature=1.0), 'seed': 5}
  grid = recipe_of.continue_piece(model, pieces.arrays, 2, recipe, given_steps=9, num_steps=12, **settings)
  bach = recipe_of.opening_of(pieces.arrays, np.array([2]), 12)['ids'][0, 1:]
  np.testing.assert_array_equal(grid[:9], bach[:9])
  assert (grid[9:] != bach[9:]).any() and (grid >= music.REST).all()
  again = recipe_of.continue_piece(model, pieces.arrays, 2, recipe, given_steps=9, num_steps=12, **settings)
  np.testing.assert_array_equal(grid, again)
  rows = np.array([0, 2])
  harmony = recipe_of.harmonise(model, pieces.arrays, rows, recipe, num_steps=5, **settings)
  np.testing.assert_array_equal(harmony[..., 0], recipe_of.opening_of(pieces.arrays, rows, 5)['ids'][:, 1:, 0])
  assert (harmony[..., 1:] >= music.REST).all()


def test_a_piece_that_is_too_short_is_refused(pieces):
  with pytest.raises(ValueError, match='has 24 time steps; got num_steps=25'):
    recipe_of.opening_of(pieces.arrays, np.array([0, 1]), 25)


def test_upside_down_is_the_same_music(pieces):
  flipped = recipe_of.bass_first(pieces.arrays)
  np.testing.assert_array_equal(flipped['pitch'][..., 0], pieces.arrays['pitch'][..., 3])
  np.testing.assert_array_equal(recipe_of.bass_first(flipped)['onset'], pieces.arrays['onset'])


def test_plain_indices_say_where_a_token_stands_and_nothing_else(pieces):
  transform = recipe_of.windows_in_orders(16, ('interleaved',), 'index')
  position = transform(pieces.arrays, np.random.default_rng(0))['position']
  np.testing.assert_array_equal(position[1, :, 0], np.arange(position.shape[1]))
  assert not position[..., 1:].any() and position.shape[-1] == 3


def test_a_teacher_marks_chords_crossings_and_parallels():
  def score(*chords):
    pitch = np.array([chords])
    return music.encode(pitch, np.ones(pitch.shape, bool)), np.arange(len(chords))[None] * 2

  # C major to D major with all voices a step up: four of six pairs are no fifth or octave, two are.
  marks = probes.counterpoint(*score((72, 67, 64, 48), (74, 69, 66, 50)))
  assert marks == {'chords': 100, 'crossings': 0, 'parallels': pytest.approx(100 * 2 / 6)}
  # C E G with F and F sharp; the tenor above the alto; nothing moves in parallel.
  marks = probes.counterpoint(*score((72, 64, 67, 60), (72, 67, 66, 53)))
  assert marks == {'chords': 50, 'crossings': 50, 'parallels': 0}
  rests = np.full((1, 3, 4), music.REST)
  assert probes.counterpoint(rests, np.zeros((1, 3), int)) == {'chords': 0, 'crossings': 0, 'parallels': 0}


def test_every_profile_has_settings_that_fit_together():
  assert set(recipe_of.RECIPES) <= set(PROFILES)
  for recipe in recipe_of.RECIPES.values():
    for settings in (recipe, recipe_of.short(recipe)):
      assert settings.num_latents <= 4 * settings.num_steps
      assert max(settings.stride, settings.num_latents // 4) < settings.num_steps
    assert recipe.stride <= recipe.num_latents // 4
