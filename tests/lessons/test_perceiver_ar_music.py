"""What notebook 07 measures means what it says: orders, positions, given voices, and a teacher's marks."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import FactoredPositions
from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.data.chorales import ChoraleSource
from perceiver_lib.generation.stream import Sampler
from perceiver_lib.lessons import perceiver_ar_music as lesson
from perceiver_lib.modalities import music
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.sequences import examples_of
from tests.support import STREAMED, assert_close


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


@functools.cache
def model_of(num_latents: int) -> PerceiverAR:
  """Tiny, with positions from the score, and no weight that is zero."""
  config = PerceiverARConfig.of_bytes(
    num_channels=16, num_latents=num_latents, num_self_attends=1, num_heads=2, vocabulary_size=music.VOCABULARY_SIZE
  )
  adapter = dataclasses.replace(config.input_adapter, position=FactoredPositions(shape=(64, 4, 12), num_channels=16))
  return filled(PerceiverAR(dataclasses.replace(config, input_adapter=adapter), rngs=nnx.Rngs(0)), scale=0.1)


@nnx.jit
def outputs(model: PerceiverAR, inputs: Tokens) -> Tokens:
  return model(inputs)


def test_scores_are_those_of_one_pass_over_whole_pieces_where_all_tokens_are_latents(pieces):
  model = model_of(4 * 39)
  for order in lesson.ORDERS:
    examples = examples_of(music.tokens(music.score(pieces.arrays), order))
    logits = outputs(model, examples.inputs)
    values, time = np.asarray(logits.values, np.float64), np.asarray(logits.time)
    total, count = 0.0, 0
    for row in range(3):
      for latent, at in enumerate(time[row]):
        if at >= 0 and examples.scored[row, at]:
          target = int(examples.targets[row, at])
          total += np.log(np.exp(values[row, latent]).sum()) - values[row, latent, target]
          count += 1
    score = lesson.score(model, pieces.arrays, order, num_steps=39, stride=38)
    # A window ends with what it scores, so the last latents know as much as here.
    assert score.nats_per_token == pytest.approx(total / count, rel=1e-5)


def test_every_batch_holds_both_orders(pieces):
  transform = lesson.windows_in_orders(16, lesson.ORDERS)
  batch = transform(pieces.arrays, np.random.default_rng(0))
  voices = batch['position'][..., 1]
  assert (voices[:2, :4] == [0, 1, 2, 3]).all() and (voices[2, :16] == 0).all()
  assert batch['ids'].shape == (3, 64) and not batch['scored'][2, :16].any()


def test_a_prefix_in_another_order_is_the_same_prefix_if_its_positions_move_along(pieces):
  inputs = examples_of(lesson.long_windows(pieces.arrays, 24, 16, count=2)).inputs
  plain, moved, stayed = (
    outputs(model_of(16), changed).values
    for changed in (
      inputs,
      lesson.with_shuffled_prefix(inputs, 16, seed=1, move_positions=True),
      lesson.with_shuffled_prefix(inputs, 16, seed=1, move_positions=False),
    )
  )
  assert_close(moved, plain, STREAMED)
  assert np.abs(stayed - plain).max() > 1e-2


def test_weights_by_voice_and_time_sum_to_the_share_that_is_near(pieces):
  inputs = examples_of(lesson.long_windows(pieces.arrays, 16, 16, count=2)).inputs
  logits, maps = nnx.jit(lambda model, inputs: capture_attention(model)(inputs))(model_of(16), inputs)
  weights = np.asarray(maps['encoder.cross_attention.0'].weights)
  back = lesson.look_back(weights, np.asarray(inputs.position), np.asarray(logits.time), 16)
  assert back.shape == (2, 4, 16)
  np.testing.assert_allclose(back.sum((1, 2)), 1, rtol=1e-5)
  # The newest step's bass is known to a latent on the bass alone: a quarter of the latents.
  assert back[:, 3, 0].max() < back[:, 0, 0].max()


def test_what_is_given_stays_and_what_is_written_can_be_repeated(pieces):
  model, settings = model_of(32), {'sampler': Sampler(temperature=1.0), 'seed': 5}
  grid = lesson.continue_piece(model, pieces.arrays, 2, given_steps=9, num_steps=12, **settings)
  bach = lesson.opening_of(pieces.arrays, np.array([2]), 12)['ids'][0, 1:]
  np.testing.assert_array_equal(grid[:9], bach[:9])
  assert (grid[9:] != bach[9:]).any() and (grid >= music.REST).all()
  again = lesson.continue_piece(model, pieces.arrays, 2, given_steps=9, num_steps=12, **settings)
  np.testing.assert_array_equal(grid, again)
  rows = np.array([0, 2])
  harmony = lesson.harmonise(model, pieces.arrays, rows, num_steps=5, **settings)
  np.testing.assert_array_equal(harmony[..., 0], lesson.opening_of(pieces.arrays, rows, 5)['ids'][:, 1:, 0])
  assert (harmony[..., 1:] >= music.REST).all()


def test_a_piece_that_is_too_short_is_refused(pieces):
  with pytest.raises(ValueError, match='has 24 time steps; got num_steps=25'):
    lesson.opening_of(pieces.arrays, np.array([0, 1]), 25)


def test_a_whole_prefix_scores_as_ever_and_another_piece_s_is_another(pieces):
  model = model_of(4 * 39)
  found = lesson.nats_by_prefix(model, pieces.arrays, (1, 8, 20), kept=8, num_steps=24, scored_steps=4)
  assert list(found['its own']) == [1, 8, 20] and list(found['another piece']) == [20]
  windows = music.evaluation_windows(pieces.arrays, 24, stride=4)
  whole = windows['scored'][:, -16:].all(1) & (windows['scored'].sum(1) == 16)
  examples = examples_of({name: array[whole] for name, array in windows.items()})
  values = np.asarray(outputs(model, examples.inputs).values, np.float64)[:, -16:]
  targets = np.take_along_axis(values, np.asarray(examples.targets)[:, -16:, None], axis=-1)[..., 0]
  assert found['its own'][20] == pytest.approx((np.log(np.exp(values).sum(-1)) - targets).mean(), rel=1e-5)
  assert found['another piece'][20] != pytest.approx(found['its own'][20], rel=1e-5)
  with pytest.raises(ValueError, match='1 to 20 before those scored'):
    lesson.nats_by_prefix(model, pieces.arrays, (21,), kept=8, num_steps=24, scored_steps=4)


def test_plain_indices_say_where_a_token_stands_and_nothing_else(pieces):
  transform = lesson.windows_in_orders(16, ('interleaved',), 'index')
  position = transform(pieces.arrays, np.random.default_rng(0))['position']
  np.testing.assert_array_equal(position[1, :, 0], np.arange(position.shape[1]))
  assert not position[..., 1:].any() and position.shape[-1] == 3


def test_a_teacher_marks_chords_crossings_and_parallels():
  def score(*chords):
    pitch = np.array([chords])
    return music.encode(pitch, np.ones(pitch.shape, bool)), np.arange(len(chords))[None] * 2

  # C major to D major with all voices a step up: four of six pairs are no fifth or octave, two are.
  marks = lesson.counterpoint(*score((72, 67, 64, 48), (74, 69, 66, 50)))
  assert marks == {'chords': 100, 'crossings': 0, 'parallels': pytest.approx(100 * 2 / 6)}
  # C E G with F and F sharp; the tenor above the alto; nothing moves in parallel.
  marks = lesson.counterpoint(*score((72, 64, 67, 60), (72, 67, 66, 53)))
  assert marks == {'chords': 50, 'crossings': 50, 'parallels': 0}
  rests = np.full((1, 3, 4), music.REST)
  assert lesson.counterpoint(rests, np.zeros((1, 3), int)) == {'chords': 0, 'crossings': 0, 'parallels': 0}


def test_what_a_token_reads_stands_in_the_cells_of_its_voice_and_step():
  step, voice = np.repeat(np.arange(11), 4), np.tile(np.arange(4), 11)
  inputs = Tokens(
    values=jnp.full((1, 44), 60),
    position=jnp.asarray(np.stack([step, voice, step], axis=-1)[None]),
    valid=jnp.arange(44)[None] < 40,
  )
  weights = np.random.default_rng(1).random((2, 16, 44))
  cells, places, recent = lesson.recent_reads(weights, inputs, np.arange(24, 40), num_steps=4)
  assert cells.columns == 4 and recent.shape == (2, 12, 16)  # steps 5 to 8, of which 5 has no latents
  tenor_at_7, alto_at_6 = 2 * 4 + 2, 1 * 4 + 1
  np.testing.assert_array_equal(recent[:, places.index(tenor_at_7), alto_at_6], weights[:, 30 - 24, 25])
