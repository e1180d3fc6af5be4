"""The tasks and probes of notebook 02 on texts small enough to check by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.data.text import Documents
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.lessons import perceiver_io_text as lesson
from perceiver_lib.modalities.text import MASK, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.modalities.text_context import ContextAdapterConfig, neighbourhoods, tokens_at
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.queries import InputQueries

LENGTH = 41
TEXT = b'the quick brown fox jumps over the lazy dog and the cat ' * 60
DOCUMENTS = Documents.of({'fox': TEXT, 'dog': TEXT[::-1]})


def raw(*lines: bytes) -> dict[str, np.ndarray]:
  text = np.frombuffer(b''.join(lines), np.uint8).reshape(len(lines), -1)
  return {'bytes': text, 'valid': np.ones(text.shape, bool)}


LINES = raw(b'a quick brown fox\nso ', b'the lazy dogs sleep  ')


@pytest.mark.parametrize('largest_shift', [0, 5])
def test_no_word_is_lost_in_both_copies_and_the_second_holds_what_the_first_lost(largest_shift):
  batch = lesson.two_copies(LINES, np.random.default_rng(3), rate=0.5, largest_shift=largest_shift)
  labels, lost, l = batch['labels'], batch['scored'], 21
  assert batch['ids'].shape == (2, 2 * l + largest_shift)
  np.testing.assert_array_equal(labels[0], ByteTokenizer().encode('a quick brown fox so '))
  np.testing.assert_array_equal(batch['ids'][:, :l], np.where(lost, MASK, labels))
  spaces = batch['ids'] == ByteTokenizer().encode(' ')[0]
  for row in range(2):
    starts = [start for start in range(largest_shift + 1)
              if (batch['ids'][row, l + start : 2 * l + start] == labels[row])[lost[row]].all()]  # fmt: skip
    assert starts and spaces[row, l : l + starts[0]].all() and spaces[row, 2 * l + starts[0] :].all()
  assert 0 < lost.sum() < (labels != ByteTokenizer().encode(' ')[0]).sum()  # half of the words, at this seed


def test_the_copy_of_another_line_holds_that_line():
  batch = lesson.two_copies(LINES, np.random.default_rng(3), rate=0.25, other_line=True)
  second = batch['ids'][:, 21:]
  assert (second == batch['labels'][::-1])[second != MASK].all()


def test_lost_letters_are_hidden_and_scored_and_nothing_else_is():
  batch = lesson.letters_lost(LINES, np.random.default_rng(0), rate=0.4)
  np.testing.assert_array_equal(batch['ids'] == MASK, batch['scored'])
  assert (batch['ids'] == batch['labels'])[~batch['scored']].all() and batch['scored'].any()
  whole = lesson.nothing_lost(LINES, np.random.default_rng(0))
  np.testing.assert_array_equal(whole['ids'], batch['labels'])


def test_batches_depend_on_seed_and_step_only():
  settings = dict(length=LENGTH, batch_size=3, seed=5)
  for batches in (
    lesson.endless(DOCUMENTS, lesson.two_copies, **settings),
    lesson.masked_batches(DOCUMENTS, rate=0.3, every=3, **settings),
  ):
    stream, later = batches(0), next(batches(1))
    next(stream)
    for key, value in next(stream).items():
      np.testing.assert_array_equal(value, later[key])
    assert (later['ids'] != next(batches(2))['ids']).any()


def test_an_exam_has_the_answers_that_a_reader_finds_and_says_what_counts():
  text = raw(b'**ANN**\nTo be or\nNot to ', b'as it was\n**BOB**\n**CY**', b'The end\nIs near\nof it is')
  asked = lesson.exam(text, np.random.default_rng(0), asked=('number of names', 'verse or prose'))
  answers, counts = ([asked[name + word].tolist() for name in lesson.ANSWERS] for word in ('', ' counts'))
  # The last name of the second passage ends at its last byte, its closing stars in the last of eight parts.
  assert answers == [[1, 7, lesson.NUM_PLACES], [1, 2, 0], [1, 0, 0]]
  assert counts == [[False] * 3, [True] * 3, [True] * 3]
  verse = lesson.exam(raw(b'One\nTwo\nSix\n', b'One\ntwo\nSix\n'), np.random.default_rng(0))
  assert verse['verse or prose'].tolist() == [1, 0]
  everything = lesson.exam(text, np.random.default_rng(0))
  assert lesson.most_frequent_answers([everything], [verse])['verse or prose'] == 50


@functools.cache
def asked_for_words() -> tuple[PerceiverIO, lesson.Reading, dict[str, np.ndarray]]:
  def tokens_of(ids, valid):
    return neighbourhoods(jnp.asarray(ids), radius=2, span=LENGTH, valid=jnp.asarray(valid))

  adapter = ContextAdapterConfig.of_neighbourhoods(2, num_id_channels=4, num_channels=16)
  config = PerceiverIOConfig.tiny(adapter, DecoderConfig(queries=InputQueries(), num_outputs=VOCAB_SIZE))
  batch = next(lesson.masked_batches(DOCUMENTS, length=LENGTH, batch_size=3, rate=0.3, every=3, seed=5)(0))
  return PerceiverIO(config, rngs=nnx.Rngs(0)), lesson.Reading(tokens_of, tokens_at), batch


def test_text_far_from_a_query_is_known_by_the_latents_alone():
  asked, reading, batch = asked_for_words()
  place = int(batch['places'][0, 0])
  far = np.flatnonzero((np.abs(np.arange(LENGTH) - place) > 20) & (batch['ids'][0] != MASK))[0]
  changed = dict(batch, ids=batch['ids'].copy())
  changed['ids'][0, far] = 200

  def change(view):
    view = jax.jit(view)
    return np.abs(np.asarray(view(asked, changed) - view(asked, batch))).max(-1)

  own, foreign = change(reading), change(reading.with_foreign_latents)
  assert own[0, 0] > 1e-6 and own[1:].max() == 0
  # Of the first text nothing is left but its queries; its latents answer for the second.
  assert foreign[0, 0] == 0 and foreign[1].min() > 1e-6 and foreign[2].max() == 0


def test_evaluation_asks_for_every_hidden_byte_and_counts_it_once():
  asker, reading, _ = asked_for_words()
  batches = lesson.evaluation_set(DOCUMENTS, length=LENGTH, batch_size=3, rate=0.3, num_windows=9)
  asked = sum(int(batch['label_valid'].sum()) for batch in batches)
  assert asked == sum(int((batch['ids'] == MASK).sum()) for batch in batches) and len(batches) == 3
  assert set(lesson.table_scores(DOCUMENTS, batches)) == {'unigram', 'word position', 'word bigram'}
  score, logits_of = lesson.masked_score(asker, reading, batches), jax.jit(reading)
  bits = []
  for batch in batches:
    log_p = jax.nn.log_softmax(logits_of(asker, {k: v for k, v in batch.items() if k != 'bytes'}))
    of_label = np.take_along_axis(np.asarray(log_p), batch['labels'][:, :, None], 2)[..., 0]
    bits.append(-of_label[batch['label_valid']] / np.log(2))
  assert score.bits_per_byte == pytest.approx(np.concatenate(bits).mean(), rel=1e-5)
