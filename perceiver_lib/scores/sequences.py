"""How far generated sequences are from the right ones, in edits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32


def until(ids: Int[np.ndarray, 'n l'], end_token: int) -> list[np.ndarray]:
  """Each row up to its first `end_token`, without it; the whole row where there is none."""
  ids = np.asarray(ids)
  is_end = ids == end_token
  lengths = np.where(is_end.any(1), is_end.argmax(1), ids.shape[1])
  return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def edit_distances(
  predicted: Sequence[Sequence[int] | np.ndarray], truth: Sequence[Sequence[int] | np.ndarray]
) -> Int32[np.ndarray, 'n']:
  """Fewest insertions, deletions and substitutions that turn each prediction into its truth, all pairs at once.

  Raises:
    ValueError: if there are not as many predictions as truths, or none.
  """
  if len(predicted) != len(truth) or not len(truth):
    raise ValueError(f'Every prediction needs its truth; got {len(predicted)} predictions and {len(truth)} truths.')
  from_ids, from_lengths = _padded(predicted, -1)
  to_ids, to_lengths = _padded(truth, -2)
  n, width = to_ids.shape
  row = np.broadcast_to(np.arange(width + 1, dtype=np.int32), (n, width + 1)).copy()
  # A pair's distance stands in the row of its prediction's length, at the column of its truth's.
  distance = np.where(from_lengths == 0, to_lengths, 0)
  for i in range(from_ids.shape[1]):
    substituted = row[:, :-1] + (from_ids[:, i, None] != to_ids)
    row = np.concatenate([row[:, :1] + 1, np.minimum(row[:, 1:] + 1, substituted)], axis=1)
    # Insertions: the best of all columns to the left, one more for each step.
    columns = np.arange(width + 1, dtype=np.int32)
    row = np.minimum.accumulate(row - columns, axis=1) + columns
    distance = np.where(from_lengths == i + 1, row[np.arange(n), to_lengths], distance)
  return distance.astype(np.int32)


def _padded(sequences: Sequence[Sequence[int] | np.ndarray], fill: int) -> tuple[np.ndarray, np.ndarray]:
  lengths = np.array([len(sequence) for sequence in sequences], np.int32)
  padded = np.full((len(sequences), max(int(lengths.max()), 1)), fill, np.int32)
  padded[np.arange(padded.shape[1]) < lengths[:, None]] = list(itertools.chain.from_iterable(sequences))
  return padded, lengths


class ErrorRates(NamedTuple):
  """Edits per token of the truth (phoneme error rate), and share of sequences with an edit (word error rate).

  `best`: against the right answer that needs fewest edits; `first`: against the first right answer.
  """

  token_error_best: float
  sequence_error_best: float
  token_error_first: float
  sequence_error_first: float


def error_rates(
  predicted: Sequence[Sequence[int] | np.ndarray], variants: Sequence[Sequence[Sequence[int]]]
) -> ErrorRates:
  """Error rates of predictions, each with one or more right answers.

  Both rates are pooled: all edits over the length of all truths counted against. Token error may exceed 1.

  Raises:
    ValueError: if there are not as many predictions as lists of right answers, or a list is empty.
  """
  if len(predicted) != len(variants) or not all(map(len, variants)):
    raise ValueError(
      f'Every prediction needs one or more right answers; got {len(predicted)} predictions for {len(variants)} lists.'
    )
  counts = np.array([len(answers) for answers in variants])
  flat = [answer for answers in variants for answer in answers]
  distance = edit_distances([row for row, count in zip(predicted, counts, strict=True) for _ in range(count)], flat)
  length = np.array([len(answer) for answer in flat])
  first = np.cumsum(counts) - counts
  best = np.array([start + np.argmin(distance[start : start + n]) for start, n in zip(first, counts, strict=True)])
  rates = [
    (float(distance[chosen].sum() / length[chosen].sum()), float((distance[chosen] > 0).mean()))
    for chosen in (best, first)
  ]
  return ErrorRates(*rates[0], *rates[1])
