"""Handwritten digits, 8 x 8 pixels: the test part of UCI optdigits, which scikit-learn ships.

The labels show how it was collected: 14 copies of one form of about 130 digits, filled in one after the other (UCI
counts 13 writers). The splits are cut where a form begins, so no form lies on two sides. A random split of the same
size tests on handwriting seen in training and is easier: 3-nearest-neighbours reach 98 to 99 % there and 97 % here, a
linear classifier 96 to 97 % there and 90 % here.
"""

from __future__ import annotations

import os

from perceiver_lib.data.base import DataSet
from perceiver_lib.data.labelled_images import ImageTable

_ROWS = {'train': range(1157), 'validation': range(1157, 1415), 'test': range(1415, 1797)}  # 9, 2 and 3 forms
TABLE = ImageTable(
  name='digits',
  package='scikit-learn',
  file='data/digits.csv.gz',
  size=8,
  source='UCI optdigits, test part',
  licence='CC BY 4.0 (UCI Machine Learning Repository, doi.org/10.24432/C50P49)',
  homepage='https://archive.ics.uci.edu/dataset/80',
  checksum='65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5',
  note='split at the borders of the 14 filled-in forms, so that handwriting is not shared between splits',
  split=lambda labels: _ROWS,
)


def load(data_dir: str | os.PathLike | None = None) -> DataSet:
  """1,157 / 258 / 382 images uint8 [8, 8, 1] of values 0..16 with labels 0..9 and an `id`, all in memory.

  The `id` is the row of the file, in the order of the forms.
  """
  return TABLE.load(data_dir)
