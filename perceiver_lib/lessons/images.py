"""How notebook 01 trains: a Perceiver on pixels, its variants, and the models that people use on images instead.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.baselines.images import SmallCNN, SmallViT
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data.augment import random_affine
from perceiver_lib.data.loading import ArraySource, training_batches
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.positions import FourierFeatures, grid
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.optimizers import adamw_warmup_cosine

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe:
  """Settings of one profile. The recipe was chosen on the 500 validation images.

  Attributes:
    train_steps: of the main training, and patch_train_steps of the same model on 2x2 patches.
    layout_steps: of the ViT and the CNN; comparison_steps: of each short training that compares variants.
    num_latents, num_latent_channels, num_layers: of the main model.
    num_variants: how many variants are compared.
    num_train_examples: take only so many training images, None = all.
  """

  train_steps: int
  patch_train_steps: int
  layout_steps: int
  comparison_steps: int
  num_latents: int = 32
  num_latent_channels: int = 64
  num_layers: int = 3
  num_variants: int = 6
  num_train_examples: int | None = None
  batch_size: int = 32
  learning_rate: float = 3e-3


RECIPES = {
  'smoke': ImageRecipe(
    train_steps=4, patch_train_steps=4, layout_steps=3,
    comparison_steps=3, num_latents=4, num_latent_channels=16, num_layers=1,
    num_variants=2, num_train_examples=200
  ),
  'demo': ImageRecipe(train_steps=3_000, patch_train_steps=6_000, layout_steps=600, comparison_steps=300),
  'full': ImageRecipe(
    train_steps=30_000, patch_train_steps=30_000, layout_steps=10_000,
    comparison_steps=10_000, num_latents=64, num_latent_channels=128,
    num_layers=6,
  ),
}  # fmt: skip


def image_perceiver(
  recipe: ImageRecipe, image_shape: tuple[int, int, int], num_classes: int, *, patch_size: int = 1, **changes: Any
) -> PerceiverConfig:
  """The main model: one read of Fourier-positioned pixels. `changes` replace fields of its config."""
  cells = image_shape[0] // patch_size
  settings = {
    'input_adapter': pixel_adapter(image_shape, patch_size=patch_size, num_bands=max(2, min(8, cells // 2))),
    'num_latents': recipe.num_latents,
    'num_latent_channels': recipe.num_latent_channels,
    'num_outputs': num_classes,
    'num_self_attends_per_block': recipe.num_layers,
    'cross_attend': LayerConfig(num_heads=2, qk_channels=32 if patch_size == 1 else 64),
    'self_attend': LayerConfig(num_heads=4),
  }
  return PerceiverConfig(**(settings | changes))


def image_classifier_loss(forward: Callable[[nnx.Module, Array], Array], *, augment: bool = True) -> Callable:
  """Cross-entropy of `forward(model, images)`, with a random turn, zoom, shear and shift drawn inside the step."""

  def loss_fn(model: nnx.Module, batch: Mapping[str, Any], rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
    images = jnp.asarray(batch['image'])
    if augment:
      images = random_affine(
        rngs.dropout(), images, max_degrees=10.0, max_scale=1.1, max_shear=0.1, max_shift=images.shape[1] / 14
      )
    logits = forward(model, images)
    correct = jnp.mean((jnp.argmax(logits, axis=-1) == batch['label']).astype(jnp.float32))
    return cross_entropy(logits, batch['label']), {'accuracy': correct}

  return loss_fn


def predicted_labels(
  forward: Callable[[nnx.Module, Array], Array], model: nnx.Module, images: np.ndarray, batch_size: int = 100
) -> Int[np.ndarray, 'n']:
  predict = _predictor(forward)
  parts = [np.asarray(predict(model, images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
  return np.concatenate(parts)


@functools.lru_cache(maxsize=32)
def _predictor(forward: Callable[[nnx.Module, Array], Array]) -> Callable[[nnx.Module, Array], Array]:
  return jax.jit(lambda model, images: jnp.argmax(forward(model, images), axis=-1))


def accuracy_percent(forward: Callable[[nnx.Module, Array], Array], model: nnx.Module, examples: Arrays) -> float:
  return 100.0 * float(np.mean(predicted_labels(forward, model, examples['image']) == examples['label']))


def train_classifier(
  model: nnx.Module,
  forward: Callable[[nnx.Module, Array], Array],
  train: Arrays,
  validation: Arrays,
  *,
  recipe: ImageRecipe,
  num_steps: int,
  seed: int,
  evaluations: int = 1,
  **fit_settings: Any,
) -> FitResult:
  """AdamW with warm-up and a cosine, and a moving average of the weights; validation accuracy `evaluations` times."""
  source = ArraySource({'image': train['image'], 'label': train['label']})
  warmup_steps = min(200, num_steps // 8)
  return fit(
    model,
    image_classifier_loss(forward),
    lambda step: training_batches(source, recipe.batch_size, seed=seed, start_step=step),
    optimizer=adamw_warmup_cosine(recipe.learning_rate, num_steps, warmup_steps=warmup_steps, weight_decay=0.05),
    num_steps=num_steps,
    seed=seed,
    evaluate=lambda trained: {'validation_accuracy': accuracy_percent(forward, trained, validation)},
    evaluations=evaluations,
    ema_decay=0.99,
    **fit_settings,
  )


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


def full_range(examples: Arrays) -> dict[str, np.ndarray]:
  """Stretches images whose brightest value is far below 255 (the digits end at 16) by a whole factor."""
  factor = 255 // max(1, int(examples['image'].max()))
  return {'image': (examples['image'] * factor).astype(np.uint8), 'label': examples['label'].astype(np.int32)}


def shrunk(examples: Arrays) -> dict[str, np.ndarray]:
  """Images at half the size by 2x2 means: the comparisons run on a quarter of the pixels."""
  height, width = (side // 2 * 2 for side in examples['image'].shape[1:3])
  pixels = examples['image'][:, :height, :width].astype(np.float32)
  means = reduce(pixels, 'b (y i) (x j) c -> b y x c', 'mean', i=2, j=2)
  return {'image': np.round(means).astype(np.uint8), 'label': examples['label']}


def classical_baselines(train: Arrays, test: Arrays) -> dict[str, float]:
  """Test accuracy in % of a linear classifier and of 3-nearest-neighbours on raw pixels (scikit-learn)."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier

  flat = [examples['image'].reshape(len(examples['image']), -1) / 255.0 for examples in (train, test)]
  models = {
    'linear classifier': LogisticRegression(max_iter=200, C=0.05),
    '3 nearest neighbours': KNeighborsClassifier(n_neighbors=3),
  }
  return {
    name: 100.0 * float(model.fit(flat[0], train['label']).score(flat[1], test['label']))
    for name, model in models.items()
  }
