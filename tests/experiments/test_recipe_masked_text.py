"""The recipe of notebook 02 on texts small enough to check by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.data.text import Documents
from perceiver_lib.experiments.recipes import masked_text, text_questions
from perceiver_lib.modalities.text import MASK, PAD
from perceiver_lib.modalities.text_neighbourhoods import NeighbourhoodAdapterConfig, neighbourhoods, tokens_at
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.positions import FourierFeatures
from tests.support import as_users_call

RECIPE = dataclasses.replace(masked_text.RECIPES['smoke'], length=41, batch_size=3)
READ = masked_text.ReadText.of(RECIPE)
TEXT = b'the quick brown fox jumps over the lazy dog and the cat ' * 60
DOCUMENTS = Documents.of({'fox': TEXT, 'dog': TEXT[::-1]})


def model(kind: str = 'features') -> PerceiverIO:
  decoder = masked_text.asked_by_position(RECIPE) if kind == 'positions' else masked_text.text_perceiver(RECIPE).decoder
  # With the recipe's zeros, the output of an untrained model would depend on nothing.
  config = masked_text.text_perceiver(RECIPE, decoder=dataclasses.replace(decoder, output='linear'))
  return PerceiverIO(config, rngs=nnx.Rngs(0))


def one_batch(step: int = 0) -> dict[str, np.ndarray]:
  batches = masked_text.masked_batches(DOCUMENTS, length=41, batch_size=3, rate=0.3, seed=5)
  return next(batches(step))


def test_neighbourhoods_are_the_bytes_around_and_padding_is_in_none():
  ids = jnp.array([[7, 8, 9, 10, 11]], jnp.int32)
  valid = jnp.array([[True, True, True, True, False]])
  tokens = neighbourhoods(ids, radius=1, span=4, valid=valid)
  expected = [[PAD, 7, 8], [7, 8, 9], [8, 9, 10], [9, 10, PAD], [10, PAD, PAD]]
  np.testing.assert_array_equal(tokens.values[0], expected)
  np.testing.assert_array_equal(tokens.position[0, :, 0], [-1.0, -0.5, 0.0, 0.5, 1.0])
  chosen = tokens_at(tokens, jnp.array([[3, 1]], jnp.int32))
  np.testing.assert_array_equal(chosen.values[0], [expected[3], expected[1]])
  np.testing.assert_array_equal(chosen.position[0, :, 0], [0.5, -0.5])


def test_a_token_of_the_wrong_width_is_refused_with_what_was_expected():
  config = NeighbourhoodAdapterConfig(
    radius=2, num_byte_channels=3, num_channels=7, position=FourierFeatures(num_bands=2, max_resolution=(8,))
  )
  tokens = neighbourhoods(jnp.zeros((1, 5), jnp.int32), radius=1, span=5)
  with as_users_call(), pytest.raises(ValueError, match=r'integer ids \[b, m, 5\]; got int32 of shape \(1, 5, 3\)'):
    config.build(nnx.Rngs(0))(tokens)


def test_hidden_words_asks_for_exactly_the_hidden_bytes():
  raw = {'bytes': np.frombuffer(TEXT[:82], np.uint8).reshape(2, 41), 'valid': np.ones((2, 41), bool)}
  batch = masked_text.hidden_words(raw, np.random.default_rng(0), rate=0.5, num_queries=41)
  for row in range(2):
    asked = batch['places'][row][batch['label_valid'][row]]
    np.testing.assert_array_equal(np.sort(asked), np.flatnonzero(batch['ids'][row] == MASK))
    np.testing.assert_array_equal(batch['labels'][row][batch['label_valid'][row]], raw['bytes'][row][asked] + 6)
  few = masked_text.hidden_words(raw, np.random.default_rng(0), rate=0.5, num_queries=3)
  assert few['label_valid'].all() and (np.take_along_axis(few['ids'], few['places'], 1) == MASK).all()


def test_batches_depend_on_seed_and_step_only():
  batches = masked_text.masked_batches(DOCUMENTS, length=41, batch_size=3, rate=0.3, seed=5)
  stream = batches(0)
  next(stream)
  for key, value in next(stream).items():
    np.testing.assert_array_equal(value, one_batch(1)[key])
  assert (one_batch(1)['ids'] != one_batch(2)['ids']).any()


@pytest.mark.parametrize('kind', ['features', 'positions'])
def test_hidden_bytes_never_reach_the_logits(kind):
  asked, batch = model(kind), one_batch()
  logits = READ(asked, batch)
  assert logits.shape == (3, batch['places'].shape[1], 262)
  # The true bytes are in 'labels' only; what the model reads has MASK there.
  assert (np.take_along_axis(batch['ids'], batch['places'], 1)[batch['label_valid']] == MASK).all()
  other = dict(batch, labels=np.zeros_like(batch['labels']))
  np.testing.assert_array_equal(READ(asked, other), logits)


def test_an_output_depends_on_text_outside_its_neighbourhood_through_the_latents():
  batch, asked = one_batch(), model()
  place = int(batch['places'][0, 0])
  far = np.flatnonzero(np.abs(np.arange(41) - place) > RECIPE.radius + 1)[0]
  changed = dict(batch, ids=batch['ids'].copy())
  changed['ids'][0, far] = 200
  assert float(jnp.abs(READ(asked, changed)[0, 0] - READ(asked, batch)[0, 0]).max()) > 1e-6


def test_evaluation_asks_for_every_hidden_byte_and_counts_it_once():
  batches = masked_text.evaluation_set(DOCUMENTS, length=41, batch_size=3, rate=0.3, num_windows=9)
  asked = sum(int(batch['label_valid'].sum()) for batch in batches)
  assert asked == sum(int((batch['ids'] == MASK).sum()) for batch in batches) and len(batches) == 3
  assert set(masked_text.table_baselines(DOCUMENTS, batches)) == {'unigram', 'word position', 'word bigram'}
  score = masked_text.masked_score(model(), READ, batches)
  probabilities = [jax.nn.log_softmax(READ(model(), batch)) for batch in batches]
  bits = [
    -np.take_along_axis(np.asarray(p), batch['labels'][:, :, None], 2)[..., 0][batch['label_valid']] / np.log(2)
    for p, batch in zip(probabilities, batches, strict=True)
  ]
  assert score.bits_per_byte == pytest.approx(np.concatenate(bits).mean(), rel=1e-5)


def test_the_first_guess_is_uniform():
  batches = masked_text.evaluation_set(DOCUMENTS, length=41, batch_size=3, rate=0.3, num_windows=3)
  untrained = PerceiverIO(masked_text.text_perceiver(RECIPE), rngs=nnx.Rngs(0))
  assert masked_text.masked_score(untrained, READ, batches).bits_per_byte == pytest.approx(np.log2(262), rel=1e-6)


def test_training_learns_a_text_that_repeats_itself():
  recipe = dataclasses.replace(RECIPE, num_channels=32, num_byte_channels=8, batch_size=8, learning_rate=1e-2)
  batches = masked_text.evaluation_set(DOCUMENTS, length=41, batch_size=3, rate=0.15, num_windows=30)
  config = masked_text.text_perceiver(recipe)
  result = masked_text.train_masked(
    PerceiverIO(config, rngs=nnx.Rngs(0)), READ, DOCUMENTS, batches, recipe=recipe, num_steps=120, seed=0,
    progress='silent',
  )  # fmt: skip
  tables = masked_text.table_baselines(DOCUMENTS, batches)
  assert result.history[-1]['validation_bits_per_byte'] < tables['word position'].bits_per_byte - 0.5


def test_fill_in_changes_the_hidden_part_only():
  filled, sure = masked_text.fill_in(model(), READ, 'the quick brown fox', 'brown')
  assert filled.startswith('the quick ') and filled.endswith(' fox') and sure.shape == (5,)
  assert ((sure > 0) & (sure <= 1)).all()
  with pytest.raises(ValueError, match="must hold the hidden part, 'cow'"):
    masked_text.fill_in(model(), READ, 'the quick brown fox', 'cow')


def test_answers_keep_to_their_columns_and_unasked_questions_have_no_gradient():
  recipe = dataclasses.replace(RECIPE, length=40)
  raw = {
    'bytes': np.frombuffer(TEXT[:80], np.uint8).reshape(2, 40),
    'play': np.array([3, 33], np.int32),
    'speaker_position': np.array([0, 40], np.int32),
    'verse_share': np.array([0.2, 0.9], np.float32),
    'num_known_lines': np.array([0, 4], np.int32),
  }
  batch = text_questions.passage_batch(raw, ('play', 'verse'))
  np.testing.assert_array_equal(batch['answers'], [[3, 0, 0], [33, text_questions.NUM_PLACES, 1]])
  np.testing.assert_array_equal(batch['scored'], [[True, False, False], [True, False, True]])
  asker = text_questions.with_encoder_of(
    model(), PerceiverIO(text_questions.question_perceiver(recipe), rngs=nnx.Rngs(1))
  )
  np.testing.assert_array_equal(asker.latents[...], model().latents[...])
  questions = text_questions.Questions(masked_text.ReadText.of(recipe))
  gradient = nnx.grad(lambda m: questions.loss(m, batch, None)[0])(asker)['decoder']['queries']['table'][...]
  assert float(jnp.abs(gradient[1]).max()) == 0 < float(jnp.abs(gradient[0]).max())
