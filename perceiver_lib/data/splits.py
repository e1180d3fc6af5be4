"""Seeded splits that are the same on every machine and NumPy version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int


def stratified_split(
  labels: Int[np.ndarray, 'n'], fractions: Mapping[str, float], *, seed: int
) -> dict[str, Int[np.ndarray, '_']]:
  """Sorted row numbers of each part; every class is divided in the same proportions, to the nearest example.

  Rows of equal label are exchangeable, so this split is wrong for data with groups (one writer, one film, one patient).

  Raises:
    ValueError: if the fractions don't sum to 1, or a part would be empty.
  """
  if not (abs(sum(fractions.values()) - 1) <= 1e-9 and min(fractions.values()) >= 0):
    raise ValueError(f'The fractions of a split must be positive and sum to 1; they are {dict(fractions)}.')
  # RandomState's stream is frozen for ever, the newer Generator's is not (NumPy enhancement proposal 19).
  random = np.random.RandomState(seed)
  borders = np.cumsum(list(fractions.values()))[:-1]
  parts: dict[str, list[np.ndarray]] = {name: [] for name in fractions}
  for label in np.unique(labels):
    rows = random.permutation(np.flatnonzero(labels == label))
    for name, part in zip(fractions, np.split(rows, np.rint(borders * len(rows)).astype(int)), strict=True):
      parts[name].append(part)
  split = {name: np.sort(np.concatenate(part)) for name, part in parts.items()}
  if empty := [name for name, rows in split.items() if not len(rows)]:
    raise ValueError(
      f'{len(labels)} examples are too few to split into {dict(fractions)}: {empty[0]!r} would be empty.'
    )
  return split


def carve(
  num_examples: int, num_carved: int, *, seed: int
) -> tuple[Int[np.ndarray, 'rest'], Int[np.ndarray, 'carved']]:
  """Sorted row numbers of the rest and of a random part of `num_carved` rows."""
  order = np.random.RandomState(seed).permutation(num_examples)
  return np.sort(order[num_carved:]), np.sort(order[:num_carved])


def by_hash(key: str, *, test: float, validation: float) -> str:
  """The split of a key, drawn by its hash alone, so that it stays where it is whatever else a set holds.

  Args:
    key: what must not be parted, such as the name of a group.
    test, validation: shares of the keys.
  """
  return _split_at(int.from_bytes(_hash(key)[:4], 'big') / 2**32, test, validation)


def filled_by_hash(sizes: Mapping[str, int], *, test: float, validation: float) -> dict[str, str]:
  """{key: split}: whole groups in the order of their hash, to the test until it has its share, then to validation.

  Exact where groups are few or differ in size; unlike `by_hash`, one more group may move others.

  Args:
    sizes: of each group.
    test, validation: shares of the sum of sizes.
  """
  total, before, splits = sum(sizes.values()), 0, {}
  for key in sorted(sizes, key=_hash):
    splits[key] = _split_at(before / total, test, validation)
    before += sizes[key]
  return splits


def _hash(key: str) -> bytes:
  return hashlib.sha256(os.fsencode(key)).digest()


def _split_at(place: float, test: float, validation: float) -> str:
  return 'test' if place < test else 'validation' if place < test + validation else 'train'
