"""What lies in a user's folder: which files are data, and any image as bytes."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

_LITTER = {'__MACOSX', '__pycache__', '@eaDir', '#recycle', '$RECYCLE.BIN', 'System Volume Information', 'lost+found'}
"""Folders that systems and Python put beside data; what is hidden (.git, ._1.png) is left out as well."""

_NOT_PIXELS = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}
"""Formats that Pillow recognises but cannot decode by itself."""


def user_path(name: Any) -> Path | None:
  """The path that a data set's name is, or None = a name.

  It is one if it is a `Path`, begins with '.', '/' or '~', or has a separator and is there.
  """
  if isinstance(name, str) and not name.startswith(('.', '/', '~')) and not ('/' in name and Path(name).exists()):
    return None
  return Path(name).expanduser() if isinstance(name, str | Path) else None


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
  """The files of a folder and all below it that end in one of the suffixes, sorted, without what is no data."""
  found, seen = [], set()
  for place, folders, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(place)
    # A link to a folder that was read would repeat its files, or never end.
    folders[:] = [] if real in seen else sorted(name for name in folders if not _is_litter(name))
    found += [] if real in seen else [Path(place, name) for name in names if not _is_litter(name)]
    seen.add(real)
  return sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())


def _is_litter(name: str) -> bool:
  return name.startswith(('.', '~$')) or name in _LITTER


def image_suffixes() -> set[str]:
  """Ends of the names of files that Pillow can decode."""
  from PIL import Image

  formats = Image.registered_extensions()
  return {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in _NOT_PIXELS}


def read_image(path: str | os.PathLike, *, grey: bool = False) -> UInt8[np.ndarray, 'y x *c']:
  """An image file as bytes, upright, in colour unless `grey`; transparent pixels lie on white.

  Raises:
    ValueError: that names the file, if it cannot be decoded or the range of its numbers is unknown.
  """
  from PIL import Image, ImageOps

  try:
    with Image.open(path) as file:
      return np.asarray(_flattened(ImageOps.exif_transpose(file), file.format).convert('L' if grey else 'RGB'))
  except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
    raise ValueError(f'{os.fspath(path)} is not an image that Pillow can read ({error}): remove it.') from error


def _flattened(image: Any, file_format: str | None) -> Any:
  """The image in a mode of bytes without transparency."""
  from PIL import Image

  # Portable greymaps of 16 bits are opened as 32 bits.
  if image.mode.startswith('I;16') or (image.mode == 'I' and file_format in ('PNG', 'PPM')):
    values = np.asarray(image)
    shown = np.rint(values / 257).astype(np.uint8)
    hidden = image.info.get('transparency')
    return Image.fromarray(shown if hidden is None else np.where(values == hidden, np.uint8(255), shown))
  if image.mode in ('I', 'F'):
    raise ValueError(f'32-bit numbers, mode {image.mode}, whose black and white are unknown; save it with 8 or 16 bits')
  if not image.has_transparency_data:
    return image.convert('RGB') if image.mode == 'LAB' else image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
