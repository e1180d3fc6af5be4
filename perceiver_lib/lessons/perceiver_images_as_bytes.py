"""Notebook 01: the same pixels in two layouts, seen by models that read the layout and by one that does not."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.baselines.images import SmallCNN, SmallViT
from perceiver_lib.data.loading import ArraySource, evaluation_batches
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.models.perceiver import Perceiver
from perceiver_lib.positions import FourierFeatures, grid
from perceiver_lib.training.metrics import correct, evaluate_dataset

View = Callable[[nnx.Module, Array], Array]
"""(model, byte images [b, y, x, c]) -> logits [b, e]."""


@dataclasses.dataclass(frozen=True)
class ReadPixels:
  """Runs a Perceiver on byte images, one token a pixel or a patch, in row-major or another `order` of the tokens."""

  patch_size: int = 1
  integer_positions: bool = False
  order: tuple[int, ...] | None = None

  def __call__(self, model: Perceiver, images: Array) -> Float[Array, 'b e']:
    tokens = pixel_tokens(images, patch_size=self.patch_size, integer_positions=self.integer_positions)
    if self.order is not None:
      tokens = jax.tree.map(lambda leaf: leaf[:, np.array(self.order)], tokens)
    return model(tokens)


def positioned_pixels(images: Array, num_bands: int = 6) -> Float[Array, 'b y x c']:
  """Pixels with their Fourier features attached, as every model of the permutation experiment gets them."""
  b, height, width, _ = images.shape
  features = FourierFeatures(num_bands=num_bands, max_resolution=(height, width))
  position = features(jnp.asarray(grid((height, width)))[None]).reshape(1, height, width, -1)
  pixels = images.astype(jnp.float32) * (2 / 255) - 1
  return jnp.concatenate([pixels, jnp.broadcast_to(position, (b, *position.shape[1:]))], axis=-1)


def permuted(features: Float[Array, 'b y x c'], order: Int[np.ndarray, 'm']) -> Float[Array, 'b y x c']:
  """The same pixels, positions attached, laid out in another order: the one permutation for all images (Tab. 2)."""
  b, height, width, channels = features.shape
  return features.reshape(b, height * width, channels)[:, order].reshape(features.shape)


@dataclasses.dataclass(frozen=True)
class ReadPositioned:
  """Runs an image model on `positioned_pixels`, in their layout or in another."""

  order: tuple[int, ...] | None = None

  def __call__(self, model: nnx.Module, images: Array) -> Float[Array, 'b e']:
    features = positioned_pixels(images)
    return model(features if self.order is None else permuted(features, np.array(self.order)))


def layout_models(image_shape: tuple[int, int, int], num_classes: int, seed: int) -> dict[str, nnx.Module]:
  """A ViT on a grid of about 4x4 patches and a CNN, both with every pixel's Fourier features beside its value."""
  num_channels = positioned_pixels(jnp.zeros((1, *image_shape), jnp.uint8)).shape[-1]
  shape = (*image_shape[:2], num_channels)
  return {
    'small ViT': SmallViT(shape, num_classes, patch_size=_patch_size(image_shape), rngs=nnx.Rngs(seed)),
    'small CNN': SmallCNN(num_channels, num_classes, rngs=nnx.Rngs(seed)),
  }


def _patch_size(image_shape: tuple[int, int, int]) -> int:
  sides = math.gcd(image_shape[0], image_shape[1])
  return max(size for size in range(1, max(1, image_shape[0] // 4) + 1) if sides % size == 0)


def accuracy_percent(view: View, model: nnx.Module, examples: Mapping[str, np.ndarray]) -> float:
  """Share of the images whose highest logit is the label's, in %."""
  batches = evaluation_batches(ArraySource(examples), 100)
  return 100.0 * evaluate_dataset(model, _hits(view), batches)['correct']


@functools.cache
def _hits(view: View) -> Callable:
  return lambda model, batch: {'correct': correct(view(model, batch['image']), batch['label'])}
