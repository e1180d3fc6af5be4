"""Labelled images from anywhere, in one form: {'id': int, 'image': uint8 [y, x, c], 'label': int}.

Bundled sets by name, any TFDS image set that has been prepared, a folder of images.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import reduce
from jaxtyping import UInt8

from perceiver_lib.data.base import DataSet, Provenance, package_version, sha256
from perceiver_lib.data.preparation import import_tfds, named_builder, naming_damage, open_splits, tfds_licence
from perceiver_lib.data.splits import stratified_split
from perceiver_lib.data.user_files import files_below, image_suffixes, read_image, user_path

BUNDLED = {'digits': 'perceiver_lib.data.digits', 'mnist5k': 'perceiver_lib.data.mnist5k'}
FRACTIONS = {'train': 0.8, 'validation': 0.1, 'test': 0.1}
_NAMES_OF_SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing', 'eval'}
MAX_CHECKSUM_BYTES = 2**30
_CHOICES = (
  f"{' or '.join(map(repr, BUNDLED))} (bundled), a TFDS image set such as 'mnist' or 'cifar10', or a folder "
  "('./photos')"
)


def load_images(
  name_or_builder: Any,
  *,
  data_dir: str | os.PathLike | None = None,
  image_size: tuple[int, int] | None = None,
  seed: int = 0,
) -> DataSet:
  """Labelled images as three splits.

  Args:
    name_or_builder: 'digits' or 'mnist5k' (bundled); the name of a TFDS image set that has been prepared in the
      array_record format, such as 'mnist' or 'cifar10'; a path with a separator in it ('./photos'), either to one
      prepared version of a TFDS set or to a folder of images (see `from_folder`); or a TFDS builder.
    data_dir: where prepared sets lie. Default: PERCEIVER_DATA_DIR or ~/.cache/perceiver_lib/data for the bundled
      sets, TFDS's own (TFDS_DATA_DIR or ~/tensorflow_datasets) for all others.
    image_size: (height, width) to crop centrally and resize to; needed for batches if the images differ in size.
    seed: of the split, where the set itself lacks a validation or a test part: a tenth of train each.

  Raises:
    FileNotFoundError: if the set is not prepared; the sentence holds the command that prepares it.
    ValueError: if the set is no labelled image set, or a bundled one is asked for in another size.
  """
  if name_or_builder in BUNDLED:
    if image_size is not None:
      raise ValueError(f'{name_or_builder!r} has images of one size already; leave image_size out.')
    return importlib.import_module(BUNDLED[name_or_builder]).load(data_dir)
  builder = name_or_builder
  if (folder := user_path(name_or_builder)) is not None:
    if not (folder / 'dataset_info.json').exists():
      return from_folder(folder, image_size=image_size, seed=seed)
    with naming_damage(folder):
      builder = import_tfds().builder_from_directory(str(folder))
  elif isinstance(name_or_builder, str):
    builder = named_builder(name_or_builder, data_dir, kind='image', choices=_CHOICES)
  return _from_builder(builder, image_size, seed)


def from_folder(
  folder: str | os.PathLike, *, image_size: tuple[int, int] | None = None, grey: bool = False, seed: int = 0
) -> DataSet:
  """A folder of images with one sub-folder a class; classes are numbered in the order of their names.

  If its sub-folders are train, validation and test, each with the same classes, these are the splits. Otherwise they
  are stratified and random, 80 / 10 / 10 %. Images are read when asked for, as colour unless `grey`; transparent pixels
  lie on white. What is hidden and what programs put beside images is no data: see `user_files.files_below`.

  Raises:
    FileNotFoundError: if there is no such folder, or no image in it.
    ValueError: if images lie elsewhere than in a class, or the splits differ in their classes.
  """
  folder = Path(folder).expanduser()
  paths = _by_split(folder, files_below(folder, image_suffixes()))
  has_splits = 'all' not in paths
  classes = {split: sorted({p.parent.name for p in part}) for split, part in paths.items()}
  names = next(iter(classes.values()))
  if different := [split for split in classes if classes[split] != names]:
    raise ValueError(
      f'The splits of {folder} must have the same classes; train has {names}, {different[0]} {classes[different[0]]}.'
    )
  labels = {split: np.array([names.index(p.parent.name) for p in part]) for split, part in paths.items()}
  if has_splits:
    chosen = {split: (split, np.arange(len(paths[split]))) for split in FRACTIONS}
  else:
    chosen = {split: ('all', rows) for split, rows in stratified_split(labels['all'], FRACTIONS, seed=seed).items()}
  parts = {
    split: _FolderSource([paths[part][row] for row in rows], labels[part][rows], rows, image_size, grey)
    for split, (part, rows) in chosen.items()
  }
  checksum, note = _files_checksum([path for part in paths.values() for path in part], folder)
  return DataSet(
    **parts,
    provenance=Provenance(
      name=folder.name,
      kind='real',
      source=f"the user's folder {folder}, classes {', '.join(names)}",
      licence="the user's own",
      counts={split: len(part) for split, part in parts.items()},
      checksum=checksum,
      note='; '.join(filter(None, ['' if has_splits else f'stratified random split, seed {seed}', note])),
    ),
  )


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
  """The images of each split, or all of them under 'all'.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they lie elsewhere than in classes.
  """
  layout = (
    f'Expected one sub-folder a class with images in it, such as {folder}/cat/1.png, or the same below train, '
    'validation and test'
  )
  if not files:
    raise FileNotFoundError(f'No images found in {folder}. {layout}.')
  parts = {file: file.relative_to(folder).parts for file in files}
  tops = sorted({place[0] for place in parts.values()})
  has_splits = set(FRACTIONS) <= set(tops)
  if not has_splits and all(top.lower() in _NAMES_OF_SPLITS for top in tops):
    raise ValueError(f'{folder} has {", ".join(tops)}, which look like splits and not like classes. {layout}.')
  for file, place in parts.items():
    if len(place) != (3 if has_splits else 2) or (has_splits and place[0] not in FRACTIONS):
      raise ValueError(f'{file} lies elsewhere than the images of a class. {layout}; move or remove it.')
  if not has_splits:
    return {'all': list(files)}
  return {split: [file for file, place in parts.items() if place[0] == split] for split in FRACTIONS}


class _FolderSource:
  """Reads and resizes one image file at a time."""

  def __init__(self, paths, labels, ids, image_size, grey):
    self.paths, self.labels, self.ids, self.image_size, self.grey = paths, labels, ids, image_size, grey

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = _sized(read_image(self.paths[index], grey=self.grey), self.image_size)
    return {'id': self.ids[index], 'image': image, 'label': self.labels[index]}


class _TfdsSource:
  """Some rows of a TFDS split, with one name and type for image and label whatever the set calls them."""

  def __init__(self, source, rows, keys, class_names, image_size):
    self.source, self.rows, self.keys, self.class_names, self.image_size = source, rows, keys, class_names, image_size

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = self.rows[index]
    example = self.source[int(row)]
    image_key, label_key = self.keys
    label = example[label_key]
    if self.class_names is not None:
      label = self.class_names[_text(label)]
    return {'id': np.int64(row), 'image': _sized(example[image_key], self.image_size), 'label': np.int64(label)}


def _text(label: str | bytes) -> str:
  return label.decode() if isinstance(label, bytes) else str(label)


def _sized(image: np.ndarray, image_size: tuple[int, int] | None) -> UInt8[np.ndarray, 'y x c']:
  image = np.asarray(image)
  if image.dtype != np.uint8:
    raise ValueError(f'Expected images of bytes (uint8); got {image.dtype} {list(image.shape)}.')
  if image_size is not None and image.shape[:2] != tuple(image_size):
    from PIL import Image, ImageOps

    squeezed = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    image = np.asarray(
      ImageOps.fit(Image.fromarray(squeezed), (image_size[1], image_size[0]), Image.Resampling.BICUBIC)
    )
  return image if image.ndim == 3 else image[..., None]


def _from_builder(builder: Any, image_size: tuple[int, int] | None, seed: int) -> DataSet:
  keys = _supervised_keys(builder)
  opened, carved = open_splits(builder, seed=seed)
  class_names = _class_names(builder, opened['train'][0], keys[1])
  parts = {split: _TfdsSource(source, rows, keys, class_names, image_size) for split, (source, rows) in opened.items()}
  folder = Path(str(builder.data_path))
  # tfds.testing.mock_data has neither files nor known splits: only a prepared set has.
  is_prepared = bool(builder.info.splits)
  checksum, note = _files_checksum(sorted(folder.iterdir()), folder) if is_prepared else (sha256([]), 'random pixels')
  carving = f'{" and ".join(carved)} carved out of train at random, seed {seed}' if carved else ''
  return DataSet(
    **parts,
    provenance=Provenance(
      name=str(builder.info.full_name),
      kind='real' if is_prepared else 'mock',
      source=f'TFDS {builder.info.full_name}, read with {package_version("tensorflow-datasets")}',
      licence=tfds_licence(builder),
      counts={split: len(part) for split, part in parts.items()},
      checksum=checksum,
      note='; '.join(filter(None, [carving, note])),
    ),
  )


def _supervised_keys(builder: Any) -> tuple[str, str]:
  tfds = import_tfds()
  features = dict(builder.info.features.items())
  images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  keys = builder.info.supervised_keys or (images[:1] + labels[:1])
  shapes = [getattr(features.get(key), 'shape', None) for key in keys if isinstance(key, str)]
  if len(shapes) != 2 or not isinstance(shapes[0], tuple) or len(shapes[0]) not in (2, 3) or shapes[1] != ():
    raise ValueError(
      f'{builder.name!r} is no set of images with one label each; its features are {", ".join(features)}.'
    )
  return tuple(keys)


def _class_names(builder: Any, train: Any, label_key: str) -> dict[str, int] | None:
  """Class numbers of labels that are text, in the order of the alphabet; None if labels are numbers."""
  if not isinstance(builder.info.features[label_key], import_tfds().features.Text):
    return None
  names = sorted({_text(train[row][label_key]) for row in range(len(train))})
  return {name: number for number, name in enumerate(names)}


def _files_checksum(paths: Sequence[Path], root: Path) -> tuple[str, str]:
  """Checksum of names and bytes, and a note if there are too many bytes to read them only for that."""
  files = [path for path in paths if path.is_file()]
  if sum(path.stat().st_size for path in files) > MAX_CHECKSUM_BYTES:
    names = (os.fsencode(f'{path.relative_to(root)} {path.stat().st_size}\n') for path in files)
    return sha256(names), 'more than 1 GiB, so the checksum covers names and sizes of the files only'
  return sha256(part for path in files for part in (os.fsencode(path.relative_to(root)), path.read_bytes())), ''


def full_range(examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Stretches images whose brightest value is far below 255 (the digits end at 16) by a whole factor."""
  factor = 255 // max(1, int(examples['image'].max()))
  return {'image': (examples['image'] * factor).astype(np.uint8), 'label': examples['label'].astype(np.int32)}


def halved(examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Images at half the size, by means of 2x2 pixels."""
  height, width = (side // 2 * 2 for side in examples['image'].shape[1:3])
  pixels = examples['image'][:, :height, :width].astype(np.float32)
  means = reduce(pixels, 'b (y i) (x j) c -> b y x c', 'mean', i=2, j=2)
  return {'image': np.round(means).astype(np.uint8), 'label': examples['label']}
