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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTable:
  """A compressed table of an installed package: lines of the pixels of a square image and its label, 0..9.

  Attributes:
    name: of the data set.
    package, file: where the table is; `file` is the end of its path.
    size: side of the images in pixels.
    source, licence, homepage, note: of the data, as `Provenance`.
    checksum: hexadecimal SHA-256 of images and labels.
    split: labels -> row numbers of each split; the row number becomes the example's `id`.
  """

  name: str
  package: str
  file: str
  size: int
  source: str
  licence: str
  homepage: str
  checksum: str
  note: str
  split: Callable[[Int[np.ndarray, 'n']], Mapping[str, Sequence[int]]]

  def read(self) -> tuple[UInt8[np.ndarray, 'n y x 1'], Int[np.ndarray, 'n']]:
    """Images and labels in the order of the file, without importing the package."""
    [path] = package_files(self.package, self.file)
    with gzip.open(path, 'rt') as file:
      table = np.loadtxt(file, delimiter=',', dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, self.size, self.size, 1), table[:, -1]

  def load(self, data_dir: str | os.PathLike | None = None) -> DataSet:
    """All splits in memory, prepared first if needed.

    Args:
      data_dir: see `preparation.data_directory`.

    Raises:
      FileNotFoundError: if the package is not installed, with the pip command.
      ValueError: if the content is not that of the checksum, for which the splits were made.
    """
    folder = preparation.prepare(self._builder_class(), data_dir)
    splits = preparation.read_prepared(folder)
    columns = (np.concatenate([part.arrays[key] for part in splits.values()]) for key in ('id', 'image', 'label'))
    ids, images, labels = columns
    order = np.argsort(ids)
    self._check(images[order], labels[order], str(folder))
    return DataSet(
      **splits,
      provenance=Provenance(
        name=self.name,
        kind='real',
        source=f'{self.source}, inside {package_version(self.package)}',
        licence=self.licence,
        counts={name: len(splits[name]) for name in ('train', 'validation', 'test')},
        checksum=self.checksum,
        note=self.note,
      ),
    )

  def _check(self, images: np.ndarray, labels: np.ndarray, where: str) -> None:
    if (found := sha256([images.astype(np.uint8), labels.astype('<i8')])) != self.checksum:
      raise ValueError(
        f'{where} holds other content (sha256 {found[:16]}…) than this version of the library was made for '
        f'({self.checksum[:16]}…): install the pinned package versions, or delete a damaged folder and prepare it '
        'again.'
      )

  def _builder_class(self) -> type:
    """The TFDS builder, made when it is needed because importing TFDS takes a third of a second."""
    tfds, table = preparation.import_tfds(), self

    class LabelledImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      name = table.name
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          description=table.note,
          features=tfds.features.FeaturesDict(
            {
              'id': tfds.features.Scalar(np.int64),
              'image': tfds.features.Tensor(shape=(table.size, table.size, 1), dtype=np.uint8),
              'label': tfds.features.ClassLabel(num_classes=10),
            }
          ),
          supervised_keys=('image', 'label'),
          homepage=table.homepage,
          license=table.licence,
        )

      def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        images, labels = table.read()
        table._check(images, labels, f'{os.path.basename(table.file)} of {package_version(table.package)}')
        return {name: self._generate_examples(images, labels, rows) for name, rows in table.split(labels).items()}

      def _generate_examples(self, images, labels, rows) -> Iterator[tuple[int, dict]]:
        for row in rows:
          yield int(row), {'id': row, 'image': images[row], 'label': labels[row]}

    return LabelledImages
