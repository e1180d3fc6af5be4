"""Tables that can be counted by hand, and probabilities that are probabilities."""

import numpy as np
import pytest

from perceiver_lib.baselines.text import compressor_bits, masked_baselines, neighbour_tables, ngram_bits, unigram_bits
from perceiver_lib.data import shakespeare
from perceiver_lib.modalities.text import ByteTokenizer, mask_words


def _windows(*texts: bytes) -> tuple[np.ndarray, np.ndarray]:
  length = max(map(len, texts))
  windows = np.stack([np.frombuffer(text.ljust(length), np.uint8) for text in texts])
  valid = np.arange(length) < np.array([len(text) for text in texts])[:, None]
  return windows, valid


def _hide(windows: np.ndarray, *places: tuple[int, int, int]) -> np.ndarray:
  hidden = np.zeros(windows.shape, bool)
  for row, start, stop in places:
    hidden[row, start:stop] = True
  return hidden


def test_uniform_text_costs_eight_bits():
  train = bytes(range(256)) * 7
  assert unigram_bits(train, bytes([3, 77])) == pytest.approx(8)
  assert ngram_bits(train, bytes([3, 77]), max_order=1) == pytest.approx([8])


def test_unigram_counts_each_byte_once_more_than_it_was_seen():
  assert unigram_bits(b'aab', b'ac') == pytest.approx(-(np.log2(3 / 259) + np.log2(1 / 259)) / 2)


def test_ngram_probabilities_sum_to_one_in_seen_and_unseen_contexts():
  train = b'the cat sat on the mat, and the rat sat on that. ' * 3 + b'what cat?'
  for context in (b'the ', b'zzzz', b'n th'):
    for order in (1, 2, 4, 7):
      # The mean over the test text, less what the same text without its last byte costs.
      before, bits = ngram_bits(train, context, max_order=order)[-1] * len(context), []
      for byte in range(256):
        test = context + bytes([byte])
        bits.append(ngram_bits(train, test, max_order=order)[-1] * len(test) - before)
      assert sum(2.0 ** -np.array(bits)) == pytest.approx(1, abs=1e-9)


def test_bigram_by_hand():
  """After 'a' came b twice and c once; contexts of each byte: a 2 (b, c), b 1, c 1 (and a line end before the text)."""
  train = b'ababaca'
  bigram_counts = {b'\na': 1, b'ab': 2, b'ba': 2, b'ac': 1, b'ca': 1}
  discount = 3 / (3 + 2 * 2)
  kinds = {b'a': 3, b'b': 1, b'c': 1}
  unigram_discount = 0.5  # no byte was seen in exactly two contexts
  unigram = {byte: (count - unigram_discount) / 5 + unigram_discount * 3 / 5 / 256 for byte, count in kinds.items()}
  after_line_end = (1 - discount) / 1 + discount * 1 / 1 * unigram[b'a']
  after_a = (bigram_counts[b'ab'] - discount) / 3 + discount * 2 / 3 * unigram[b'b']
  expected = -(np.log2(after_line_end) + np.log2(after_a)) / 2
  assert ngram_bits(train, b'ab', max_order=2)[1] == pytest.approx(expected)


def test_longer_contexts_help_on_english():
  train = shakespeare.load().validation.joined()
  bits = ngram_bits(train[:300_000], train[-10_000:], max_order=4)
  assert bits == sorted(bits, reverse=True)
  assert bits[-1] < 2.8 < 4.6 < bits[0]


@pytest.mark.parametrize('arguments', [(b'', b'a', 2), (b'a', b'', 2), (b'a', b'a', 8)])
def test_ngrams_refuse_what_they_cannot_count(arguments):
  with pytest.raises(ValueError, match='order of 1 to 7'):
    ngram_bits(*arguments[:2], max_order=arguments[2])


def test_word_position_reads_the_table_of_the_hidden_length():
  train = b'cat cot cat dogs'
  windows, valid = _windows(b'x cat y')
  scores = masked_baselines(train, windows, _hide(windows, (0, 2, 5)), valid)
  in_word = np.bincount(np.frombuffer(train.replace(b' ', b''), np.uint8), minlength=256) + 1.0
  unigram = in_word / in_word.sum()
  expected = [(n + 16 * unigram[byte]) / (3 + 16) for n, byte in zip([3, 2, 3], b'cat', strict=True)]
  assert scores['word position'].bits_per_byte == pytest.approx(-np.log2(expected).mean())
  assert scores['word position'].accuracy == 1
  assert scores['unigram'].bits_per_byte == pytest.approx(-np.log2(unigram[list(b'cat')]).mean())
  assert scores['unigram'].accuracy == pytest.approx(1 / 3)  # t and c tie at t = 3 + 1 = c; argmax takes c


def test_neighbours_on_both_sides_help_and_hidden_ones_do_not():
  train = b'red dog ran. big cat sat. ' * 40
  windows, valid = _windows(b'red dog ran.', b'big cat sat.')
  both_shown = _hide(windows, (0, 4, 7), (1, 4, 7))
  scores = masked_baselines(train, windows, both_shown, valid)
  assert scores['word bigram'].accuracy == 1
  assert scores['word bigram'].bits_per_byte < 0.2
  assert scores['word position'].bits_per_byte > 1
  all_hidden = _hide(windows, (0, 0, 3), (0, 4, 7), (0, 8, 12), (1, 0, 3), (1, 4, 7), (1, 8, 12))
  scores = masked_baselines(train, windows, all_hidden, valid)
  assert scores['word bigram'] == scores['word position']


def test_a_neighbour_in_another_window_does_not_help():
  train = b'red dog ran. big cat sat. ' * 40
  windows, valid = _windows(b'red', b'dog', b'ran.')
  scores = masked_baselines(train, windows, _hide(windows, (1, 0, 3)), valid)
  assert scores['word bigram'] == scores['word position']


def test_baselines_take_what_word_masking_gives():
  texts = [b'when shall we three meet again', b'in thunder, lightning, or in rain?']
  ids, valid = ByteTokenizer().batch(texts)
  windows, _ = _windows(*texts)
  hidden = mask_words(ids, np.random.default_rng(1), rate=0.5).label_mask
  scores = masked_baselines(b' '.join(texts) * 9, windows, hidden, valid)
  assert scores['word bigram'].bits_per_byte < scores['word position'].bits_per_byte < scores['unigram'].bits_per_byte


@pytest.mark.parametrize('place', [(0, 3, 4), (0, 0, 2), (1, 2, 4)])
def test_parts_of_words_whitespace_and_padding_are_refused(place):
  windows, valid = _windows(b'cat dog', b'up')
  with pytest.raises(ValueError, match='whole ones'):
    masked_baselines(b'cat dog', windows, _hide(windows, place), valid)


def test_priming_helps_compressors_on_what_they_have_read():
  rng = np.random.default_rng(0)
  text = rng.integers(97, 123, 5000).astype(np.uint8).tobytes()
  bits = compressor_bits(text, text)
  assert bits['xz primed'] < 0.2
  assert min(bits['gzip'], bits['bz2'], bits['xz']) > np.log2(26)


def test_a_byte_between_known_neighbours_is_the_most_frequent_one():
  train = b'cat cat cot dog dig dig xyz'
  windows = np.frombuffer(b'c_t d_g d__ z_x', np.uint8)[None]
  windows = np.where(windows == ord('_'), np.frombuffer(b'cat dog dig zax', np.uint8), windows)
  hidden = np.zeros(windows.shape, bool)
  hidden[0, [1, 5, 9, 10, 13]] = True
  shares = neighbour_tables(train, windows, hidden, contexts=((1, 0), (1, 1)))
  # (1, 0): c-a right; d-i wrong (dog), d-i right; after a hidden byte and after z the most frequent byte, a space.
  assert shares[1, 0] == 2 / 5
  # (1, 1): c_t a right; d_g i wrong; the rest falls back.
  assert shares[1, 1] == 2 / 5
