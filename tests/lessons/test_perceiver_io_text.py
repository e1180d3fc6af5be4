"""The probes of notebook 02 on texts small enough to check by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.data.text import Documents
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.lessons import perceiver_io_text as lesson
from perceiver_lib.modalities.text import MASK, VOCAB_SIZE
from perceiver_lib.modalities.text_context import ContextAdapterConfig, holes, neighbourhoods, tokens_at
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.queries import InputQueries, LearnedQueries
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.losses import cross_entropy

LENGTH = 41
TEXT = b'the quick brown fox jumps over the lazy dog and the cat ' * 60
DOCUMENTS = Documents.of({'fox': TEXT, 'dog': TEXT[::-1]})


def tokens_of(ids, valid):
  return neighbourhoods(jnp.asarray(ids), radius=2, span=LENGTH, valid=jnp.asarray(valid))


def ask_holes(tokens, places):
  return holes(tokens.values[..., 2], places, radius=6, span=LENGTH, num_buckets=64)


def ask_places(tokens, places):
  return Tokens(values=places)


WAYS = {
  'hole': (
    ContextAdapterConfig.of_holes(6, num_buckets=64, num_id_channels=4, num_channels=16),
    lesson.Reading(tokens_of, ask_holes),
  ),
  'features': (InputQueries(), lesson.Reading(tokens_of, tokens_at)),
  'place': (LearnedQueries(num_queries=LENGTH, num_channels=16), lesson.Reading(tokens_of, ask_places)),
}
LOGITS = {name: jax.jit(view) for name, (_, view) in WAYS.items()}
READ = WAYS['hole'][1]


def model(queries=WAYS['hole'][0], num_outputs: int = VOCAB_SIZE) -> PerceiverIO:
  adapter = ContextAdapterConfig.of_neighbourhoods(2, num_id_channels=4, num_channels=16)
  config = PerceiverIOConfig.tiny(adapter, DecoderConfig(queries=queries, num_outputs=num_outputs))
  return PerceiverIO(config, rngs=nnx.Rngs(0))


def one_batch(step: int = 0) -> dict[str, np.ndarray]:
  return next(lesson.masked_batches(DOCUMENTS, length=LENGTH, batch_size=3, rate=0.3, every=3, seed=5)(step))


def test_batches_depend_on_seed_and_step_only():
  stream = lesson.masked_batches(DOCUMENTS, length=LENGTH, batch_size=3, rate=0.3, every=3, seed=5)(0)
  next(stream)
  for key, value in next(stream).items():
    np.testing.assert_array_equal(value, one_batch(1)[key])
  assert (one_batch(1)['ids'] != one_batch(2)['ids']).any()


@pytest.mark.parametrize('asked_by', list(WAYS))
def test_hidden_bytes_never_reach_the_logits(asked_by):
  asked, batch = model(WAYS[asked_by][0]), one_batch()
  logits = LOGITS[asked_by](asked, batch)
  assert logits.shape == (3, batch['places'].shape[1], 262)
  # The true bytes are in 'labels' only; what the model reads has MASK there.
  assert (np.take_along_axis(batch['ids'], batch['places'], 1)[batch['label_valid']] == MASK).all()
  other = dict(batch, labels=np.zeros_like(batch['labels']))
  np.testing.assert_array_equal(LOGITS[asked_by](asked, other), logits)


def test_text_far_from_a_hole_is_known_by_the_latents_alone():
  batch, asked = one_batch(), model()
  place = int(batch['places'][0, 0])
  shown = batch['ids'][0] != MASK
  far = np.flatnonzero((np.abs(np.arange(LENGTH) - place) > 20) & shown)[0]
  changed = dict(batch, ids=batch['ids'].copy())
  changed['ids'][0, far] = 200

  def change(view):
    view = jax.jit(view)
    return np.abs(np.asarray(view(asked, changed) - view(asked, batch))).max(-1)

  own, foreign = change(READ), change(READ.with_foreign_latents)
  assert own[0, 0] > 1e-6 and own[1:].max() == 0
  # Of the first text nothing is left but its queries; its latents answer for the second.
  assert foreign[0, 0] == 0 and foreign[1].min() > 1e-6 and foreign[2].max() == 0


def test_evaluation_asks_for_every_hidden_byte_and_counts_it_once():
  batches = lesson.evaluation_set(DOCUMENTS, length=LENGTH, batch_size=3, rate=0.3, num_windows=9)
  asked = sum(int(batch['label_valid'].sum()) for batch in batches)
  assert asked == sum(int((batch['ids'] == MASK).sum()) for batch in batches) and len(batches) == 3
  assert set(lesson.table_scores(DOCUMENTS, batches)) == {'unigram', 'word position', 'word bigram'}
  asker = model()
  score = lesson.masked_score(asker, READ, batches)
  probabilities = [
    jax.nn.log_softmax(LOGITS['hole'](asker, {k: v for k, v in batch.items() if k != 'bytes'})) for batch in batches
  ]
  bits = [
    -np.take_along_axis(np.asarray(p), batch['labels'][:, :, None], 2)[..., 0][batch['label_valid']] / np.log(2)
    for p, batch in zip(probabilities, batches, strict=True)
  ]
  assert score.bits_per_byte == pytest.approx(np.concatenate(bits).mean(), rel=1e-5)


def test_fill_in_answers_for_the_hidden_bytes_of_every_text():
  hidden = {'the quick brown fox': 'brown', 'a lazy dog': 'dog'}
  written = lesson.fill_in(model(), READ, hidden, length=LENGTH)
  [(_, sure)] = lesson.fill_in(model(), READ, {'a lazy dog': 'dog'}, length=LENGTH)
  assert [len(found) for _, found in written] == [5, 3]
  np.testing.assert_allclose(written[1][1], sure, rtol=1e-5)
  assert ((sure > 0) & (sure <= 1)).all()
  with pytest.raises(ValueError, match="must hold the hidden words, 'cow'"):
    lesson.fill_in(model(), READ, {'the quick brown fox': 'cow'}, length=LENGTH)


def exam() -> dict[str, np.ndarray]:
  return lesson.exam(
    {
      'bytes': np.frombuffer(TEXT[:80], np.uint8).reshape(2, 40),
      'play': np.array([3, 33], np.int32),
      'speaker_position': np.array([0, 40], np.int32),
      'verse_share': np.array([0.2, 0.9], np.float32),
      'num_known_lines': np.array([0, 4], np.int32),
    }
  )


def test_an_exam_has_the_answers_and_says_what_counts():
  asked = lesson.asking_only(exam(), ['play', 'verse'])
  answers, counts = ([asked[name + word].tolist() for name in lesson.ANSWERS] for word in ('', ' counts'))
  assert answers == [[3, 33], [0, lesson.NUM_PLACES], [0, 1]]
  assert counts == [[True, True], [False, False], [False, True]]
  # Always the answer of the training passages: right for one play of two, and for the one known line.
  seen = {name: value[1:] for name, value in exam().items()}
  assert lesson.majority_scores(seen, exam()) == {'play': 50.0, 'speaker': 50.0, 'verse': 100.0}
  assert lesson.spread(exam(), 7)['play'].tolist() == [3, 33]


def test_answers_keep_to_their_columns_and_unasked_questions_have_no_gradient():
  batch = lesson.asking_only(exam(), ['play', 'verse'])
  queries = LearnedQueries(num_queries=len(lesson.ANSWERS), num_channels=16)
  asker = model(queries, sum(lesson.ANSWERS.values()))

  def loss(asker):
    logits = lesson.answer_columns(asker(tokens_of(batch['ids'], np.ones(batch['ids'].shape, bool))))
    assert [array.shape for array in logits.values()] == [(2, 34), (2, 9), (2, 2)]
    return sum(
      cross_entropy(logits[name], jnp.asarray(batch[name]), valid=jnp.asarray(batch[f'{name} counts']))
      for name in lesson.ANSWERS
    )

  gradient = jax.jit(nnx.grad(loss))(asker)['decoder']['queries']['table'][...]
  assert float(jnp.abs(gradient[1]).max()) == 0 < float(jnp.abs(gradient[0]).max())
