"""What a model of spelling and sound must beat: letters read one by one, alone and with their neighbours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int, Int64

from perceiver_lib.data import pronunciation as words

NEIGHBOURS = 4
_NUM_LETTERS, _NUM_PHONEMES = len(words.LETTERS), len(words.PHONEMES)
# What one letter says: nothing, one phoneme, or two (x as K S): 0, 1 + p, 1 + 39 + 39 p + q.
_NUM_CHUNKS = 1 + _NUM_PHONEMES + _NUM_PHONEMES**2
_ROUNDS, _WORDS_A_ROUND = 4, 20_000
_UNSEEN = 0.01


def pronunciation_tables(train: words.WordSource, held_out: words.WordSource) -> dict[str, list[list[int]]]:
  """What two tables say of each word, after an alignment of letters and phonemes (Viterbi training, no phoneme model).

  letter: what each letter says most often: nothing, a phoneme or two. letters in context: what the letter says most
  often among the same neighbours, as many on both sides, up to four, as were seen in training.
  """
  letters, chunks = _aligned(train)
  asked = held_out.arrays['letters']
  predicted = np.zeros(asked.shape, np.int64)
  results = {}
  for width in range(NEIGHBOURS + 1):
    seen, best = _most_frequent(_contexts(letters, width), chunks)
    keys = _contexts(asked, width)
    place = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
    predicted = np.where(seen[place] == keys, best[place], predicted)
    if width in (0, NEIGHBOURS):
      name = 'letters in context' if width else 'letter'
      said = np.where(asked == words.PAD, 0, predicted)
      results[name] = [_phonemes(row) for row in said]
  return results


def phoneme_entropy(train: words.WordSource) -> float:
  """Nats of a phoneme, or END, drawn by its frequency: the loss of who knows frequencies only."""
  counts = np.bincount(train.arrays['phonemes'].ravel())[words.END :]
  shares = counts[counts > 0] / counts.sum()
  return float(-np.sum(shares * np.log(shares)))


def _phonemes(chunks: Int64[np.ndarray, 'l']) -> list[int]:
  said: list[int] = []
  for chunk in (int(chunk) - 1 for chunk in chunks if chunk):
    pair = divmod(chunk - _NUM_PHONEMES, _NUM_PHONEMES)
    said += [words.FIRST_PHONEME + number for number in ([chunk] if chunk < _NUM_PHONEMES else pair)]
  return said


def _contexts(letters: Int[np.ndarray, 'n l'], width: int) -> Int64[np.ndarray, 'n l']:
  """Each letter with `width` neighbours on both sides as one number; 5 bits a letter, PAD beyond the word."""
  padded = np.pad(letters.astype(np.int64), ((0, 0), (width, width)))
  keys = np.zeros(letters.shape, np.int64)
  for offset in range(2 * width + 1):
    keys = (keys << 5) | padded[:, offset : offset + letters.shape[1]]
  return keys


def _most_frequent(keys: Int64[np.ndarray, 'n l'], chunks: Int64[np.ndarray, 'n l']) -> tuple[np.ndarray, np.ndarray]:
  """Sorted contexts, and what was said most often in each."""
  known = chunks >= 0
  # 45 bits of context and 11 of chunk.
  pairs, counts = np.unique((keys[known] << 11) | chunks[known], return_counts=True)
  order = np.lexsort((counts, pairs >> 11))
  context = (pairs >> 11)[order]
  last = np.append(context[1:] != context[:-1], True)
  return context[last], (pairs & 2047)[order][last]


def _aligned(train: words.WordSource) -> tuple[np.ndarray, np.ndarray]:
  """Letters, and what each of them says, -1 behind the word and in words that no alignment fits."""
  letters, phonemes = train.arrays['letters'], train.arrays['phonemes'][:, :-1]
  phonemes = np.where(phonemes >= words.FIRST_PHONEME, phonemes - words.FIRST_PHONEME, -1)
  some = np.random.RandomState(0).permutation(len(letters))[:_WORDS_A_ROUND]
  # Words with as many letters as phonemes give the first table: most of their letters say one phoneme, in order.
  equal = (letters != words.PAD).sum(1) == (phonemes >= 0).sum(1)
  first = np.full(letters.shape, -1, np.int64)
  first[equal] = np.where(letters[equal] != words.PAD, phonemes[equal][:, : letters.shape[1]] + 1, -1)
  scores = _log_probabilities(letters, first)
  for _ in range(_ROUNDS):
    scores = _log_probabilities(letters[some], _best_chunks(letters[some], phonemes[some], scores))
  return letters, _best_chunks(letters, phonemes, scores)


def _log_probabilities(
  letters: Int[np.ndarray, 'n l'], chunks: Int64[np.ndarray, 'n l']
) -> Float32[np.ndarray, 'letter chunk']:
  """Of each chunk given the letter, with a little for chunks not seen, mostly for silence and single phonemes."""
  prior = np.full(_NUM_CHUNKS, _UNSEEN / _NUM_PHONEMES)
  prior[: 1 + _NUM_PHONEMES] = 1.0
  known = chunks >= 0
  shape = (_NUM_LETTERS, _NUM_CHUNKS)
  index = np.ravel_multi_index((letters[known] - words.FIRST_LETTER, chunks[known]), shape)
  counts = np.bincount(index, minlength=np.prod(shape)).reshape(shape) + prior
  return np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)


def _best_chunks(
  letters: Int[np.ndarray, 'n l'], phonemes: Int[np.ndarray, 'n p'], scores: Float32[np.ndarray, 'letter chunk']
) -> Int64[np.ndarray, 'n l']:
  """What each letter says in the best alignment of its word."""
  n, num_letters = letters.shape
  one = np.maximum(phonemes, 0) + 1
  two = 1 + _NUM_PHONEMES + _NUM_PHONEMES * np.maximum(phonemes[:, :-1], 0) + np.maximum(phonemes[:, 1:], 0)
  best = np.full((n, phonemes.shape[1] + 1), -np.inf, np.float32)
  best[:, 0] = 0
  step = np.zeros((num_letters, *best.shape), np.int8)
  for i in range(num_letters):
    letter = np.maximum(letters[:, i] - words.FIRST_LETTER, 0)[:, None]
    options = np.full((3, *best.shape), -np.inf, np.float32)
    options[0] = best + scores[letter, 0]
    options[1, :, 1:] = best[:, :-1] + scores[letter, one]
    options[2, :, 2:] = best[:, :-2] + scores[letter, two]
    exists = (letters[:, i] != words.PAD)[:, None]
    step[i] = np.where(exists, options.argmax(0), 0)
    best = np.where(exists, options.max(0), best)
  row = np.arange(n)
  place = (phonemes >= 0).sum(1)
  fits = np.isfinite(best[row, place])
  chunks = np.full(letters.shape, -1, np.int64)
  for i in reversed(range(num_letters)):
    taken = step[i, row, place]
    said = np.where(taken == 1, one[row, place - 1], np.where(taken == 2, two[row, np.maximum(place - 2, 0)], 0))
    chunks[:, i] = np.where(fits & (letters[:, i] != words.PAD), said, -1)
    place = np.where(fits, place - taken, place)
  return chunks
