"""Ids of the released byte models, and what masks may and may not hide."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_lib.modalities import text
from perceiver_lib.modalities.text import MASK, ByteTokenizer, hidden_words, mask_words, word_numbers


def test_ids_are_those_of_the_released_models():
  np.testing.assert_array_equal(ByteTokenizer().encode('A\x00é'), [65 + 6, 0 + 6, 0xC3 + 6, 0xA9 + 6])
  np.testing.assert_array_equal(ByteTokenizer(add_special_tokens=True).encode('hi'), [4, 104 + 6, 105 + 6, 5])
  assert text.VOCAB_SIZE == 262
  assert ByteTokenizer().encode('hi').dtype == np.int32


@given(st.text(), st.booleans())
def test_decoding_undoes_encoding(string, add_special_tokens):
  tokenizer = ByteTokenizer(add_special_tokens=add_special_tokens)
  assert tokenizer.decode(tokenizer.encode(string)) == string


def test_decoding_drops_special_tokens_and_mends_broken_utf8():
  assert ByteTokenizer().decode([1, 104 + 6, 3, 0xC3 + 6, 2, 0]) == 'h\N{REPLACEMENT CHARACTER}'


def test_a_batch_is_padded_on_the_right_and_says_where():
  ids, valid = ByteTokenizer().batch(['a', b'bcd'])
  np.testing.assert_array_equal(ids, [[103, 0, 0], [104, 105, 106]])
  np.testing.assert_array_equal(valid, [[True, False, False], [True, True, True]])
  ids, valid = ByteTokenizer(add_special_tokens=True).batch(['a'], length=5)
  np.testing.assert_array_equal(ids, [[4, 103, 5, 0, 0]])
  np.testing.assert_array_equal(valid, [[True, True, True, False, False]])


def test_a_zero_byte_is_no_padding():
  _, valid = ByteTokenizer().batch([b'\0'])
  assert valid.all()


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: ByteTokenizer().batch([]), 'one or more texts'),
    (lambda: ByteTokenizer().batch('a text'), 'list of one or more texts'),
    (lambda: ByteTokenizer(add_special_tokens=True).batch(['a', '']), 'text 1 of 2 is empty'),
    (lambda: ByteTokenizer().batch(['ab', 'abcd'], length=3), 'Text 1 has 4 tokens, but the length is 3'),
    (lambda: ByteTokenizer().decode([262]), r'ids in \[0, 262\)'),
    (lambda: inspect.unwrap(word_numbers)(np.zeros(3, np.int32)), r'shape \(3,\)'),
    (lambda: inspect.unwrap(word_numbers)(np.zeros((2, 3), np.uint8)), 'raw bytes'),
    (lambda: mask_words(np.full((2, 3), 262), np.random.default_rng(0)), 'from 262 to 262'),
    (lambda: mask_words(np.zeros((2, 3), np.int32), np.random.default_rng(0), rate=15), 'got 15'),
  ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
  # Unwrapped where the shapes that only tests check would refuse it before the sentence does.
  with pytest.raises(ValueError, match=message):
    call()


def test_words_are_runs_between_whitespace_and_end_with_the_row():
  ids, _ = ByteTokenizer(add_special_tokens=True).batch(["I'm  you", 'me\n'])
  number, num_words = word_numbers(ids)
  np.testing.assert_array_equal(number, [[-1, 0, 0, 0, -1, -1, 1, 1, 1, -1], [-1, 2, 2, -1, -1, -1, -1, -1, -1, -1]])
  assert num_words == 3


@given(st.lists(st.text('ab \n', min_size=1, max_size=23), min_size=1, max_size=5), st.integers(0, 99))
def test_a_word_is_hidden_whole_or_not_at_all(texts, seed):
  ids, valid = ByteTokenizer(add_special_tokens=True).batch(texts)
  masked = mask_words(ids, np.random.default_rng(seed), rate=0.5)
  number, num_words = word_numbers(ids)
  for word in range(num_words):
    assert len(np.unique(masked.label_mask[number == word])) == 1
  assert not masked.label_mask[number == -1].any()
  np.testing.assert_array_equal(masked.ids[masked.label_mask], text.MASK)
  np.testing.assert_array_equal(masked.ids[~masked.label_mask], ids[~masked.label_mask])
  np.testing.assert_array_equal(masked.labels, ids)
  assert not (masked.label_mask & ~valid).any()


def _prose(words: int) -> np.ndarray:
  return ByteTokenizer().batch([b'to be or notwithstanding ' * (words // 4)])[0]


def test_words_are_hidden_independently_at_the_asked_rate():
  ids = _prose(40_000)
  number, num_words = word_numbers(ids)
  first = np.flatnonzero(np.diff(number[0], prepend=-1) > 0)
  hidden = mask_words(ids, np.random.default_rng(7)).label_mask[0, first]
  assert len(hidden) == num_words
  # Five standard deviations of a mean of 40,000 draws, and of the correlation of neighbours.
  assert hidden.mean() == pytest.approx(0.15, abs=5 * np.sqrt(0.15 * 0.85 / num_words))
  assert np.corrcoef(hidden[:-1], hidden[1:])[0, 1] == pytest.approx(0, abs=5 / np.sqrt(num_words))


def test_masks_are_a_function_of_the_seed():
  ids = _prose(400)
  hidden = [mask_words(ids, np.random.default_rng(seed)).label_mask for seed in (5, 5, 6)]
  np.testing.assert_array_equal(hidden[0], hidden[1])
  assert (hidden[0] != hidden[2]).any()


FOX = b'the quick brown fox jumps over the lazy dog and the cat ' * 2
RAW = {'bytes': np.frombuffer(FOX[:82], np.uint8).reshape(2, 41), 'valid': np.ones((2, 41), bool)}


def test_every_third_word_is_hidden_besides_and_its_neighbours_are_shown():
  batch = hidden_words(RAW, np.random.default_rng(0), rate=1e-9, num_queries=41, every=3)
  for row in range(2):
    words = bytes(np.where(batch['ids'][row] == MASK, ord('_'), batch['ids'][row] - 6).astype(np.uint8)).split()
    hidden = np.array([set(word) == {ord('_')} for word in words])
    assert np.flatnonzero(hidden).tolist() == list(range(int(hidden.argmax()), len(words), 3))


def test_hidden_words_asks_for_exactly_the_hidden_bytes():
  batch = hidden_words(RAW, np.random.default_rng(0), rate=0.5, num_queries=41)
  for row in range(2):
    asked = batch['places'][row][batch['label_valid'][row]]
    np.testing.assert_array_equal(np.sort(asked), np.flatnonzero(batch['ids'][row] == MASK))
    np.testing.assert_array_equal(batch['labels'][row][batch['label_valid'][row]], RAW['bytes'][row][asked] + 6)
  few = hidden_words(RAW, np.random.default_rng(0), rate=0.5, num_queries=3)
  assert few['label_valid'].all() and (np.take_along_axis(few['ids'], few['places'], 1) == MASK).all()
