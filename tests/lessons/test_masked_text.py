"""The recipe of notebook 02 on texts small enough to check by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.data.text import Documents
from perceiver_lib.lessons import masked_text, text_models, text_questions
from perceiver_lib.modalities.text import MASK, PAD, VOCAB_SIZE
from perceiver_lib.modalities.text_context import (
  NGRAMS,
  ContextAdapterConfig,
  holes,
  neighbourhoods,
  num_hole_ids,
  tokens_at,
)
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.positions import FourierFeatures
from tests.support import as_users_call

RECIPE = dataclasses.replace(text_models.RECIPES['smoke'], length=41, batch_size=3)
READ = masked_text.ReadText.of(RECIPE)
LOGITS = jax.jit(READ)
TEXT = b'the quick brown fox jumps over the lazy dog and the cat ' * 60
DOCUMENTS = Documents.of({'fox': TEXT, 'dog': TEXT[::-1]})


def model(asked_by: str = 'hole') -> PerceiverIO:
  # With the recipe's zeros, the output of an untrained model would depend on nothing.
  decoder = dataclasses.replace(text_models.text_decoder(RECIPE, asked_by), output='linear')
  return PerceiverIO(text_models.text_perceiver(RECIPE, decoder=decoder), rngs=nnx.Rngs(0))


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
  position = FourierFeatures(num_bands=2, max_resolution=(8,))
  config = ContextAdapterConfig(num_ids=5, num_id_channels=3, num_channels=7, position=position)
  tokens = neighbourhoods(jnp.zeros((1, 5), jnp.int32), radius=1, span=5)
  with as_users_call(), pytest.raises(ValueError, match=r'integer ids \[b, m, 5\]; got int32 of shape \(1, 5, 3\)'):
    config.build(nnx.Rngs(0))(tokens)


def test_a_hole_is_what_stands_around_it_and_the_place_within():
  ids = np.frombuffer(b'ab cd ef gh', np.uint8).astype(np.int32)[None] + 6
  ids[0, 3:5] = MASK
  tokens = holes(jnp.asarray(ids), jnp.array([[3, 4]], jnp.int32), radius=6, span=11, num_buckets=50)
  assert tokens.values.shape == (1, 2, num_hole_ids(6))
  first, second = np.asarray(tokens.values[0])
  np.testing.assert_array_equal(first[:6], [*ids[0, 2::-1], PAD, PAD, PAD])
  np.testing.assert_array_equal(first[6:12], ids[0, 5:11])
  np.testing.assert_array_equal([first[12:15], second[12:15]], [[1, 2, 3], [2, 1, 3]])
  # Both bytes are in one hole: all else is the same, and n-grams fall into the buckets behind the bytes.
  np.testing.assert_array_equal(np.delete(first, [12, 13]), np.delete(second, [12, 13]))
  assert (first[15:] >= VOCAB_SIZE).all() and (first[15:] < VOCAB_SIZE + 50).all()
  with as_users_call(), pytest.raises(ValueError, match='radius of at least 6 bytes, its longest n-gram; got 5'):
    holes(jnp.asarray(ids), jnp.array([[3]], jnp.int32), radius=5, span=11, num_buckets=50)


def test_equal_ngrams_share_a_bucket_and_the_two_sides_do_not():
  text = np.frombuffer(b'of the X of the Y of the', np.uint8).astype(np.int32)[None] + 6
  text[0, [7, 16]] = MASK
  buckets = holes(jnp.asarray(text), jnp.array([[7, 16]], jnp.int32), radius=6, span=24, num_buckets=1_000)
  before, after = np.split(np.asarray(buckets.values[0, :, 15:]), 2, axis=-1)
  np.testing.assert_array_equal(before[0], before[1])
  np.testing.assert_array_equal(after[0], after[1])
  assert len(NGRAMS) == before.shape[1] and not np.isin(before, after).any()


def test_every_third_word_is_hidden_besides_and_its_neighbours_are_shown():
  raw = {'bytes': np.frombuffer(TEXT[:82], np.uint8).reshape(2, 41), 'valid': np.ones((2, 41), bool)}
  batch = masked_text.hidden_words(raw, np.random.default_rng(0), rate=1e-9, num_queries=41, every=3)
  for row in range(2):
    words = bytes(np.where(batch['ids'][row] == MASK, ord('_'), batch['ids'][row] - 6).astype(np.uint8)).split()
    hidden = np.array([set(word) == {ord('_')} for word in words])
    assert np.flatnonzero(hidden).tolist() == list(range(int(hidden.argmax()), len(words), 3))


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


@pytest.mark.parametrize('asked_by', ['hole', 'features', 'place'])
def test_hidden_bytes_never_reach_the_logits(asked_by):
  asked, batch = model(asked_by), one_batch()
  logits = LOGITS(asked, batch)
  assert logits.shape == (3, batch['places'].shape[1], 262)
  # The true bytes are in 'labels' only; what the model reads has MASK there.
  assert (np.take_along_axis(batch['ids'], batch['places'], 1)[batch['label_valid']] == MASK).all()
  other = dict(batch, labels=np.zeros_like(batch['labels']))
  np.testing.assert_array_equal(LOGITS(asked, other), logits)


def test_an_output_depends_on_text_outside_its_neighbourhood_through_the_latents():
  batch, asked = one_batch(), model()
  place = int(batch['places'][0, 0])
  shown = batch['ids'][0] != MASK
  far = np.flatnonzero((np.abs(np.arange(41) - place) > 20) & shown)[0]
  changed = dict(batch, ids=batch['ids'].copy())
  changed['ids'][0, far] = 200
  assert float(jnp.abs(LOGITS(asked, changed)[0, 0] - LOGITS(asked, batch)[0, 0]).max()) > 1e-6


def test_evaluation_asks_for_every_hidden_byte_and_counts_it_once():
  batches = masked_text.evaluation_set(DOCUMENTS, length=41, batch_size=3, rate=0.3, num_windows=9)
  asked = sum(int(batch['label_valid'].sum()) for batch in batches)
  assert asked == sum(int((batch['ids'] == MASK).sum()) for batch in batches) and len(batches) == 3
  assert set(masked_text.table_baselines(DOCUMENTS, batches)) == {'unigram', 'word position', 'word bigram'}
  asker = model()
  score = masked_text.masked_score(asker, READ, batches)
  probabilities = [
    jax.nn.log_softmax(LOGITS(asker, {k: v for k, v in batch.items() if k != 'bytes'})) for batch in batches
  ]
  bits = [
    -np.take_along_axis(np.asarray(p), batch['labels'][:, :, None], 2)[..., 0][batch['label_valid']] / np.log(2)
    for p, batch in zip(probabilities, batches, strict=True)
  ]
  assert score.bits_per_byte == pytest.approx(np.concatenate(bits).mean(), rel=1e-5)


def test_the_first_guess_is_uniform():
  batches = masked_text.evaluation_set(DOCUMENTS, length=41, batch_size=3, rate=0.3, num_windows=3)
  untrained = PerceiverIO(text_models.text_perceiver(RECIPE), rngs=nnx.Rngs(0))
  assert masked_text.masked_score(untrained, READ, batches).bits_per_byte == pytest.approx(np.log2(262), rel=1e-6)


def test_training_learns_a_text_that_repeats_itself():
  recipe = dataclasses.replace(RECIPE, num_query_channels=32, num_id_channels=8, batch_size=8, learning_rate=1e-2)
  batches = masked_text.evaluation_set(DOCUMENTS, length=41, batch_size=3, rate=0.15, num_windows=15)
  untrained = PerceiverIO(text_models.text_perceiver(recipe), rngs=nnx.Rngs(0))
  read = masked_text.ReadText.of(recipe)
  result = masked_text.train_masked(
    untrained, read, DOCUMENTS, batches, recipe=recipe, num_steps=80, seed=0, progress='silent'
  )
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
  config = text_questions.question_perceiver(recipe)
  # Linear, as in `model`: behind zeros no query has a gradient.
  config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, output='linear'))
  asker = PerceiverIO(config, rngs=nnx.Rngs(1))
  questions = text_questions.Questions(masked_text.ReadText.of(recipe))
  gradient = jax.jit(nnx.grad(lambda m: questions.loss(m, batch, None)[0]))(asker)['decoder']['queries']['table'][...]
  assert float(jnp.abs(gradient[1]).max()) == 0 < float(jnp.abs(gradient[0]).max())
