"""Real photographs that scikit-image and scikit-learn ship, as pyramids inside one flat array that a compiled program
can read anywhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from perceiver_lib.data.base import package_files
from perceiver_lib.data.user_files import read_image
from perceiver_lib.tokens import AnyArray

# Whole photographs are held out: crops of one photograph share its texture, so a split by crop would leak.
SPLITS: Mapping[str, tuple[str, ...]] = {
  'train': (
    *('brick.png', 'camera.png', 'chelsea.png', 'coins.png', 'flower.jpg', 'grass.png', 'hubble_deep_field.jpg'),
    *('ihc.png', 'moon.png', 'retina.jpg', 'rocket.jpg'),
  ),
  'validation': ('astronaut.png', 'gravel.png'),
  'test': ('china.jpg', 'coffee.png'),
}
LICENCE = (
  'scikit-image: public domain, CC0 or no known restrictions; scikit-learn china and flower: CC BY 2.0, '
  'danielbuechele and vultilion on Flickr'
)


class PhotoAtlas(NamedTuple):
  """Photographs at several scales, end to end in one array; entry e starts at `start[e]` and is row-major.

  Attributes:
    pixels: 0xBBGGRR, so that one gather fetches a colour.
    start, height, width: of each entry.
    cumulative: probability of this entry or an earlier one; photographs weigh the same, whatever their size.
  """

  pixels: Int[AnyArray, 'pixels']
  start: Int[AnyArray, 'entries']
  height: Int[AnyArray, 'entries']
  width: Int[AnyArray, 'entries']
  cumulative: Float[AnyArray, 'entries']


def photo_path(name: str) -> Path:
  """Where an installed package keeps this photograph."""
  if name in ('china.jpg', 'flower.jpg'):
    return package_files('scikit-learn', f'images/{name}')[0]
  return package_files('scikit-image', f'data/{name}')[0]


def halve(image: np.ndarray, factor: int) -> Float[np.ndarray, 'h w c']:
  """Mean over blocks of `factor` x `factor` pixels; rows and columns left over are cut off."""
  h, w = image.shape[0] // factor * factor, image.shape[1] // factor * factor
  blocks = image[:h, :w].astype(np.float32).reshape(h // factor, factor, w // factor, factor, -1)
  return blocks.mean((1, 3))


def pack_atlas(photos: Sequence[np.ndarray], *, min_side: int) -> PhotoAtlas:
  """Each photograph at 1/1, 1/2, 1/4 and 1/8 scale, as long as its shorter side keeps `min_side` pixels.

  Small scales carry most texture a pixel, as a photograph of a whole scene does at the size a small model can read.

  Raises:
    ValueError: if a photograph is smaller than `min_side` at full scale.
  """
  pixels, shapes, weights = [], [], []
  for photo in photos:
    levels = [np.rint(halve(photo, factor)) for factor in (1, 2, 4, 8) if min(photo.shape[:2]) // factor >= min_side]
    if not levels:
      raise ValueError(
        f'Crops with their margin need photographs of at least {min_side} pixels a side; got one of '
        f'{photo.shape[0]} x {photo.shape[1]}. Ask for smaller crops or leave it out.'
      )
    for level in levels:
      pixels.append(level.reshape(-1, 3).astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32))
      shapes.append(level.shape[:2])
      weights.append(1 / len(levels) / len(photos))
  height, width = np.array(shapes, np.int32).T
  ends = np.cumsum(height * width, dtype=np.int32)
  return PhotoAtlas(np.concatenate(pixels), ends - height * width, height, width, np.cumsum(weights, dtype=np.float32))


@functools.cache
def shipped_atlas(split: str, min_side: int) -> PhotoAtlas:
  """Atlas of the photographs of 'train', 'validation' or 'test'."""
  atlas = pack_atlas([read_image(photo_path(name)) for name in SPLITS[split]], min_side=min_side)
  return jax.tree.map(jax.numpy.asarray, atlas)
