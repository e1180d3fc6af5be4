"""The mirrored copy task of Perceiver AR (2202.07765; perceiver-ar `dataset.py`, `random_mirrored`), made on the spot.

A sequence is a start token, random bytes, the same bytes backwards, and an end token; what is scored is the second
half. The farthest byte to copy is as far away as the sequence is long, so nothing with a shorter memory can do better
than guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from perceiver_lib.modalities.text import BOS, EOS, NUM_SPECIAL


def copy_batch(length: int, batch_size: int, *, seed: int, step: int = 0) -> dict[str, np.ndarray]:
  """Sequences of `length` tokens, an even number; those of another seed, length or step are others.

  Returns:
    'ids' int32 [b, length]; 'scored' bool [b, length], the second half; 'position' int32 [b, length, 1], counted from
    the mirror, so that a byte and its copy lie at p and -p (as inputs) at every length: a model that copies short
    sequences can go on with long ones. The paper's own positions count from the start.

  Raises:
    ValueError: for an odd length, or one without a byte to copy.
  """
  if length < 4 or length % 2:
    raise ValueError(f'A mirrored sequence has an even number of tokens, 4 or more; got length {length}.')
  half = np.random.default_rng((seed, length, step)).integers(0, 256, (batch_size, length // 2 - 1)) + NUM_SPECIAL
  first, last = (np.full((batch_size, 1), token) for token in (BOS, EOS))
  index = np.arange(length, dtype=np.int32)
  return {
    'ids': np.concatenate([first, half, half[:, ::-1], last], axis=1).astype(np.int32),
    'position': np.tile((index - (length // 2 - 1))[None, :, None], (batch_size, 1, 1)),
    'scored': np.tile(index >= length // 2, (batch_size, 1)),
  }


def copy_batches(
  length: int, batch_size: int, *, seed: int, **columns: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """What `fit` asks for: from a step to the batches from that step on, none of which comes twice.

  Args:
    columns: further numbers, in every row of every batch `[b, 1]`: trainings that differ in them run one program.
  """
  more = {name: np.full((batch_size, 1), number, np.int32) for name, number in columns.items()}
  return lambda start_step: (
    copy_batch(length, batch_size, seed=seed, step=step) | more for step in itertools.count(start_step)
  )
