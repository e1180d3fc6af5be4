"""Labelled images that an installed package ships as one compressed table, prepared with a split of our own."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from perceiver_lib.data import preparation
from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version, sha256

Labelled = tuple[UInt8[np.ndarray, 'n y x 1'], Int[np.ndarray, 'n']]
Split = Callable[[Int[np.ndarray, 'n']], Mapping[str, Sequence[int]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A compressed table of an installed package: lines of the pixels of a square image and its label, 0..9."""

  package: str
  file: str
  size: int
  homepage: str

  def read(self) -> Labelled:
    """Images `[n, size, size, 1]` and labels in the order of the file, without importing the package."""
    [path] = package_files(self.package, self.file)
    with gzip.open(path, 'rt') as file:
      table = np.loadtxt(file, delimiter=',', dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, self.size, self.size, 1), table[:, -1]

  def __str__(self) -> str:
    return f'{os.path.basename(self.file)} of {package_version(self.package)}'


def image_checksum(images: np.ndarray, labels: np.ndarray) -> str:
  """SHA-256 of uint8 images and their labels, independent of how and where they were stored."""
  return sha256([images.astype(np.uint8), labels.astype('<i8')])


def check_images(images: np.ndarray, labels: np.ndarray, expected: str, where: str) -> None:
  """Raises ValueError unless the content is the one that the splits were made for."""
  if (found := image_checksum(images, labels)) != expected:
    raise ValueError(
      f'{where} holds other content (sha256 {found[:16]}…) than this version of the library was made for '
      f'({expected[:16]}…): install the pinned package versions, or delete a damaged folder and prepare it again.'
    )


def load(
  table: Table,
  read: Callable[[], Labelled],
  split: Split,
  provenance: Provenance,
  data_dir: str | os.PathLike | None = None,
) -> DataSet:
  """All splits in memory, prepared first if needed, and their content checked against the provenance's checksum.

  Args:
    table: where the images are.
    read: its images and labels; called only to prepare.
    split: labels -> row numbers of each split; the row number becomes the example's `id`.
    provenance: all but the counts.
    data_dir: see `preparation.data_directory`.
  """
  folder = preparation.prepare(_builder_class(table, read, split, provenance), data_dir)
  splits = preparation.read_prepared(folder)
  columns = (np.concatenate([part.arrays[key] for part in splits.values()]) for key in ('id', 'image', 'label'))
  ids, images, labels = columns
  order = np.argsort(ids)
  check_images(images[order], labels[order], provenance.checksum, str(folder))
  counts = {name: len(splits[name]) for name in ('train', 'validation', 'test')}
  return DataSet(**splits, provenance=dataclasses.replace(provenance, counts=counts))


def _builder_class(table: Table, read: Callable[[], Labelled], split: Split, provenance: Provenance) -> type:
  """The TFDS builder, made when it is needed because importing TFDS takes a third of a second."""
  tfds = preparation.import_tfds()

  class LabelledImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = provenance.name
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        description=provenance.note,
        features=tfds.features.FeaturesDict(
          {
            'id': tfds.features.Scalar(np.int64),
            'image': tfds.features.Tensor(shape=(table.size, table.size, 1), dtype=np.uint8),
            'label': tfds.features.ClassLabel(num_classes=10),
          }
        ),
        supervised_keys=('image', 'label'),
        homepage=table.homepage,
        license=provenance.licence,
      )

    def _split_generators(self, dl_manager):
      del dl_manager  # nothing to download
      images, labels = read()
      check_images(images, labels, provenance.checksum, str(table))
      return {name: self._generate_examples(images, labels, rows) for name, rows in split(labels).items()}

    def _generate_examples(self, images, labels, rows) -> Iterator[tuple[int, dict]]:
      for row in rows:
        yield int(row), {'id': row, 'image': images[row], 'label': labels[row]}

  return LabelledImages
