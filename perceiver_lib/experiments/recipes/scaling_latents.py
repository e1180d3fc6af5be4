"""Accuracy against the number of latents, for notebook 10: digits at half size, one token a pixel."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping

import numpy as np
from flax import nnx

from perceiver_lib.data.images import load_images
from perceiver_lib.data.loading import stack
from perceiver_lib.experiments.recipes import images
from perceiver_lib.models.perceiver import Perceiver


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsRecipe:
  """Settings of one profile.

  Attributes:
    train_steps: of each training.
    num_latent_channels: small, so that the latents are the bottleneck.
    seeds: whose validation accuracies are averaged.
    limit: the most latents.
    tolerance: the gain, in points of accuracy, that a doubling must bring.
  """

  train_steps: int
  num_latent_channels: int = 16
  seeds: tuple[int, ...] = (0, 1)
  limit: int = 64
  tolerance: float = 1.0


RECIPES = {
  'smoke': LatentsRecipe(train_steps=2, seeds=(0,), limit=2),
  'demo': LatentsRecipe(train_steps=300),
  'full': LatentsRecipe(train_steps=10_000, seeds=(0, 1, 2), limit=128, tolerance=0.5),
}


@functools.cache
def digits() -> tuple[Mapping[str, Mapping[str, np.ndarray]], object]:
  """Training and validation digits at half the size, 14 x 14 pixels, and where they come from."""
  data = load_images('mnist5k', seed=0)
  halves = {name: images.shrunk(images.full_range(stack(getattr(data, name)))) for name in ('train', 'validation')}
  return halves, data.provenance


@dataclasses.dataclass
class LatentTrials:
  """Trains one Perceiver for each number of latents it is asked for, once, and remembers what came.

  Attributes:
    accuracies: number of latents -> validation accuracy in % for each seed.
    seconds: number of latents -> wall-clock seconds of its trainings.
  """

  recipe: LatentsRecipe
  accuracies: dict[int, list[float]] = dataclasses.field(default_factory=dict)
  seconds: dict[int, float] = dataclasses.field(default_factory=dict)

  def __call__(self, num_latents: int) -> float:
    """The mean over seeds."""
    if num_latents not in self.accuracies:
      begin = time.perf_counter()
      self.accuracies[num_latents] = [self._trained(num_latents, seed) for seed in self.recipe.seeds]
      self.seconds[num_latents] = time.perf_counter() - begin
    return float(np.mean(self.accuracies[num_latents]))

  def _trained(self, num_latents: int, seed: int) -> float:
    data, _ = digits()
    recipe = dataclasses.replace(
      images.RECIPES['demo'],
      num_latents=num_latents,
      num_latent_channels=self.recipe.num_latent_channels,
      num_layers=1,
    )
    config = images.image_perceiver(recipe, data['train']['image'].shape[1:], 10)
    result = images.train_classifier(
      Perceiver(config, rngs=nnx.Rngs(seed)),
      images.ReadPixels(),
      data['train'],
      data['validation'],
      recipe=recipe,
      num_steps=self.recipe.train_steps,
      seed=seed,
      progress='silent',
    )
    return result.history[-1]['validation_accuracy']
