"""Notebook 01: pixels as a set of tokens, also for models that need a picture; whole files; damaged images."""

from __future__ import annotations

import functools
import io
import math
import struct
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int16, UInt8
from PIL import Image

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.baselines.images import SmallCNN, SmallViT
from perceiver_lib.data.loading import ArraySource, evaluation_batches
from perceiver_lib.experiments.tables import Table
from perceiver_lib.flops import count_flops, step_flops
from perceiver_lib.parameters import count
from perceiver_lib.positions import indices
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.metrics import correct, predict

View = Callable[[nnx.Module, Array], Array]
"""(model, images [b, y, x, c] or files [b, m]) -> logits [b, e]."""

Encode = Callable[[np.ndarray], bytes]
"""Image [y, x, c] -> the bytes of its file."""


class InOrder(nnx.Module):
  """A model that gets its tokens, each with its position, in one fixed order: the order is data, not a program."""

  def __init__(self, model: nnx.Module, order: Int[np.ndarray, 'm']):
    self.model = model
    self.order = nnx.Variable(jnp.asarray(order, jnp.int32))

  def __call__(self, tokens: Tokens) -> Float[Array, 'b e']:
    return self.model(jax.tree.map(lambda leaf: leaf[:, self.order[...]], tokens))


class AsPicture(nnx.Module):
  """Lays tokens out in rows, in the order in which they come, for a model that takes pictures."""

  def __init__(self, model: nnx.Module, adapter: FeatureAdapterConfig, shape: tuple[int, int], *, rngs: nnx.Rngs):
    self.model, self.shape, self.adapter = model, shape, adapter.build(rngs)

  def __call__(self, tokens: Tokens) -> Float[Array, 'b e']:
    height, width = self.shape
    return self.model(rearrange(self.adapter(tokens), 'b (y x) c -> b y x c', y=height, x=width))


def picture_models(
  adapter: FeatureAdapterConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> dict[str, nnx.Module]:
  """A ViT on a grid of 4x4 patches or a little finer, and a CNN; both get what the Perceiver reads, places included."""
  height, width, _ = image_shape
  sides = math.gcd(height, width)
  patch_size = max(size for size in range(1, max(1, height // 4) + 1) if sides % size == 0)
  channels, rngs = adapter.num_channels, nnx.Rngs(seed)
  models = {
    'small ViT': SmallViT((height, width, channels), num_classes, patch_size=patch_size, rngs=rngs),
    'small CNN': SmallCNN(channels, num_classes, rngs=rngs),
  }
  return {name: AsPicture(model, adapter, (height, width), rngs=rngs) for name, model in models.items()}


def right(view: View, model: nnx.Module, examples: Mapping[str, np.ndarray]) -> Bool[np.ndarray, 'n']:
  """Whether the highest logit of an image or a file is the label's."""
  batches = evaluation_batches(ArraySource(examples), 100)
  return predict(model, _hits(view), batches) > 0


def accuracy_percent(view: View, model: nnx.Module, examples: Mapping[str, np.ndarray]) -> float:
  """Share of `right`, in %."""
  return 100.0 * float(right(view, model, examples).mean())


@functools.cache
def _hits(view: View) -> Callable:
  return lambda model, batch: correct(view(model, batch['image']), batch['label'])


def model_table(models: Mapping[str, nnx.Module], view: View, images: UInt8[np.ndarray, 'n y x c']) -> Table:
  """Parameters, and operations of one answer and of one training step per image."""

  def loss(model: nnx.Module, batch: Array, rngs: None) -> tuple[Array, None]:
    return view(model, batch).sum(), None

  rows = []
  for name, model in models.items():
    flops = count_flops(view, model, images[:1]), step_flops(model, loss, images[:1])
    rows.append([name, f'{count(model):,}', *(f'{number / 1e6:.1f}' for number in flops)])
  return Table(['model', 'parameters', 'MFLOPs per image', 'and with the gradient'], rows)


def as_files(
  splits: Mapping[str, Mapping[str, np.ndarray]], encode: Encode, length: int = 0
) -> dict[str, dict[str, np.ndarray]]:
  """The splits with the files of their images in place of these, in rows of the longest, or of `length` if longer."""
  rows = file_rows(np.concatenate([examples['image'] for examples in splits.values()]), encode, length)
  ends = np.cumsum([len(examples['label']) for examples in splits.values()])[:-1]
  parts = zip(splits.items(), np.split(rows, ends), strict=True)
  return {name: {'image': part, 'label': examples['label']} for (name, examples), part in parts}


def file_rows(images: UInt8[np.ndarray, 'n y x c'], encode: Encode, length: int = 0) -> Int16[np.ndarray, 'n m']:
  """The bytes of the file of each image; -1 stands behind the end of the shorter ones."""
  files = [np.frombuffer(encode(image), np.uint8) for image in images]
  rows = np.full((len(files), max(length, *map(len, files))), -1, np.int16)
  for row, file in zip(rows, files, strict=True):
    row[: len(file)] = file
  return rows


def bmp(image: UInt8[np.ndarray, 'y x c']) -> bytes:
  """A BMP file of three bytes per pixel: one of greys begins with a table of all 256."""
  stream = io.BytesIO()
  Image.fromarray(image.squeeze()).convert('RGB').save(stream, 'BMP')
  return stream.getvalue()


def png(image: UInt8[np.ndarray, 'y x c'], level: int) -> bytes:
  """A PNG file without row filters, so that the level of compression, 0 = stored to 9, is all that can change.

  Source: PNG specification (W3C, third edition), sections 5.3 and 11.2.
  """

  def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

  height, width, channels = image.shape
  header = struct.pack('>IIBBBBB', width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
  rows = b''.join(b'\0' + row.tobytes() for row in image)
  chunks = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows, level)), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def bytes_changed(images: UInt8[np.ndarray, 'n y x c'], encode: Encode, seed: int = 0) -> float:
  """Mean number of bytes of a file, its end included, that differ once one pixel of its image is inverted."""
  random, changed = np.random.default_rng(seed), images.copy()
  for image in changed:
    image[tuple(random.integers(image.shape[:2]))] ^= 255
  before, after = np.split(file_rows(np.concatenate([images, changed]), encode), 2)
  return float((before != after).sum(1).mean())


def length_accuracy(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]) -> float:
  """Test accuracy in % of a table that knows how long a file is: the commonest label of lengths within two bytes."""
  lengths = [(examples['image'] >= 0).sum(1) for examples in (train, test)]
  counts = np.zeros((max(map(max, lengths)) + 3, max(train['label']) + 1))
  for shift in range(-2, 3):
    np.add.at(counts, (lengths[0] + shift, train['label']), 1)
  return 100.0 * float((counts[lengths[1]].argmax(1) == test['label']).mean())


def read_file(model: nnx.Module, files: Int16[Array, 'b m']) -> Float[Array, 'b e']:
  """Runs a Perceiver on files: one token per byte, which knows its value and its number in the file."""
  files = jnp.asarray(files)
  place = jnp.asarray(indices((files.shape[1],)))[jnp.newaxis]
  return model(Tokens(values=jnp.maximum(files, 0), position=place, valid=files >= 0))


def patch_of_noise(images: UInt8[np.ndarray, 'n y x c'], side: int, seed: int = 0) -> UInt8[np.ndarray, 'n y x c']:
  """The images with random bytes in one square of `side` pixels, at a place of its own in each."""
  random, noisy = np.random.default_rng(seed), images.copy()
  _, height, width, channels = images.shape
  for image in noisy:
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    image[top : top + side, left : left + side] = random.integers(0, 256, (side, side, channels), np.uint8)
  return noisy
