"""What a model remembers against its number of latents, for notebook 10: digits of 8 x 8 pixels.

A Perceiver IO reads an image one pixel a token into a few latents of 8 channels, and is asked for every pixel again.
The score is the share of the pixels' variance that it explains on validation images.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, UInt8

from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data.images import load_images
from perceiver_lib.data.loading import stack
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.lessons.images import full_range
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.positions import FourierFeatures, grid
from perceiver_lib.queries import PositionQueries, position_queries
from perceiver_lib.training.optimizers import adamw_warmup_cosine

NUM_CHANNELS = 8
BATCH_SIZE = 32
LEARNING_RATE = 1e-2
EMA_DECAY = 0.98


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsRecipe:
  """Settings of one profile.

  Attributes:
    train_steps: of each training.
    num_seeds: whose scores are averaged.
    smallest, limit: the fewest and the most latents.
    tolerance: the gain, in points of explained variance, that a doubling must bring.
  """

  train_steps: int
  num_seeds: int
  smallest: int
  limit: int
  tolerance: float = 10.0


RECIPES = {
  'smoke': LatentsRecipe(train_steps=2, num_seeds=1, smallest=1, limit=1),
  'demo': LatentsRecipe(train_steps=800, num_seeds=2, smallest=4, limit=64),
  'full': LatentsRecipe(train_steps=10_000, num_seeds=5, smallest=1, limit=128, tolerance=2.0),
}


@functools.cache
def digits() -> tuple[UInt8[np.ndarray, 'n y x c'], UInt8[np.ndarray, 'v y x c'], Any]:
  """Training and validation images, and where they come from."""
  data = load_images('digits', seed=0)
  return *(full_range(stack(split))['image'] for split in (data.train, data.validation)), data.provenance


def memory_config(num_latents: int, image_shape: tuple[int, int, int]) -> PerceiverIOConfig:
  """One read, one layer, one question for each pixel."""
  layer = LayerConfig(num_heads=2, qk_channels=32)
  position = FourierFeatures(num_bands=4, max_resolution=image_shape[:2])
  return PerceiverIOConfig(
    input_adapter=pixel_adapter(image_shape, num_bands=4),
    num_latents=num_latents,
    num_latent_channels=NUM_CHANNELS,
    num_self_attends_per_block=1,
    cross_attend=layer,
    self_attend=LayerConfig(num_heads=2),
    decoder=DecoderConfig(queries=PositionQueries(position=position), num_outputs=1, cross_attend=layer),
  )


def squared_error(model: PerceiverIO, images: UInt8[Array, 'b y x c']) -> Float[Array, '']:
  """Of remembered pixels, which are between -1 and 1."""
  queries = position_queries(grid(images.shape[1:3]), batch_size=images.shape[0])
  pixels = rearrange(images, 'b y x c -> b (y x) c').astype(jnp.float32) * (2 / 255) - 1
  return jnp.mean(jnp.square(model(pixel_tokens(images), queries) - pixels))


def trained_errors(
  config: PerceiverIOConfig,
  train: UInt8[np.ndarray, 'n y x c'],
  validation: UInt8[np.ndarray, 'v y x c'],
  *,
  seeds: Sequence[int],
  num_steps: int,
) -> Float[Array, 's']:
  """Trains a model for each seed, all in one compiled loop; the squared error of each on the validation images."""
  models = [nnx.split(PerceiverIO(config, rngs=nnx.Rngs(seed))) for seed in seeds]
  graphdef, (_, unravel) = models[0][0], ravel_pytree(models[0][1])
  optimizer = adamw_warmup_cosine(LEARNING_RATE, num_steps, warmup_steps=num_steps // 8)

  def error(params: Array, images: Array) -> Array:
    return squared_error(nnx.merge(graphdef, unravel(params)), images)

  def train_one(params: Array, key: Array) -> Array:
    def step(state: Any, key: Array) -> tuple[Any, None]:
      params, moments, average = state
      batch = jnp.asarray(train)[jax.random.randint(key, (BATCH_SIZE,), 0, len(train))]
      updates, moments = optimizer.update(jax.grad(error)(params, batch), moments, params)
      params = optax.apply_updates(params, updates)
      return (params, moments, optax.incremental_update(params, average, 1 - EMA_DECAY)), None

    state = params, optimizer.init(params), params
    (_, _, average), _ = jax.lax.scan(step, state, jax.random.split(key, num_steps))
    return error(average, jnp.asarray(validation))

  # One long vector of parameters makes one small update to compile, where a tree makes one for each leaf.
  params = jnp.stack([ravel_pytree(state)[0] for _, state in models])
  with jax.numpy_dtype_promotion('standard'):  # optax mixes dtypes
    return jax.jit(jax.vmap(train_one))(params, jax.vmap(jax.random.key)(jnp.array(seeds)))


def explained_by_components(numbers: list[int]) -> dict[int, float]:
  """Explained variance in % of as many principal components as `numbers` latents have channels: the linear limit."""
  train, validation, _ = digits()
  flat, new = (rearrange(part, 'n y x c -> n (y x c)').astype(np.float64) for part in (train, validation))
  mean = flat.mean(axis=0)
  directions = np.linalg.svd(flat - mean, full_matrices=False)[2]
  shares = np.square((new - mean) @ directions.T).mean(axis=0) / np.square(new - mean).mean(axis=0).sum()
  return {number: 100.0 * float(shares[: number * NUM_CHANNELS].sum()) for number in numbers}


@dataclasses.dataclass
class LatentTrials:
  """Trains models for each number of latents that it is called with, once, and remembers what came.

  Attributes:
    seed: of the first model.
    scores: number of latents -> explained variance in % for each seed.
    seconds: number of latents -> wall-clock seconds, compilation included.
  """

  recipe: LatentsRecipe
  seed: int
  scores: dict[int, list[float]] = dataclasses.field(default_factory=dict)
  seconds: dict[int, float] = dataclasses.field(default_factory=dict)

  def __call__(self, num_latents: int) -> float:
    """The mean over seeds."""
    if num_latents not in self.scores:
      begin = time.perf_counter()
      self.scores[num_latents] = self._explained(num_latents)
      self.seconds[num_latents] = time.perf_counter() - begin
    return float(np.mean(self.scores[num_latents]))

  def _explained(self, num_latents: int) -> list[float]:
    train, validation, _ = digits()
    config = memory_config(num_latents, train.shape[1:])
    seeds = range(self.seed, self.seed + self.recipe.num_seeds)
    errors = trained_errors(config, train, validation, seeds=seeds, num_steps=self.recipe.train_steps)
    variance = np.mean(np.square(validation * (2 / 255) - train.mean(axis=0) * (2 / 255)))
    return [100.0 * float(1 - error / variance) for error in np.asarray(errors)]
