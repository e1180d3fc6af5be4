"""How notebook 08 names digits: an image's bytes are the source, its name in bytes is the target, a letter a timestep.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data.augment import random_affine
from perceiver_lib.data.loading import ArraySource, training_batches
from perceiver_lib.decoder import IdentityDecoderConfig
from perceiver_lib.generation.timesteps import TimestepWindow, generate
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.modalities.pixels import pixel_adapter, pixel_tokens
from perceiver_lib.modalities.text import BOS, EOS, PAD, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.unified import (
  LearnedLatents,
  UnifiedPerceiver,
  UnifiedPerceiverConfig,
)
from perceiver_lib.scores.sequences import until
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.optimizers import muon_and_adam

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
Inputs = Mapping[str, Tokens]
NUM_TIMESTEPS = max(map(len, NAMES)) + 1
"""The letters of the longest name, and its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitRecipe:
  """Settings of one profile, chosen on the validation images."""

  train_steps: int
  num_latents: int = 8
  num_latent_channels: int = 64
  num_layers: int = 2
  batch_size: int = 64
  learning_rate: float = 2e-3
  matrix_learning_rate: float = 0.02
  num_test_images: int | None = None


RECIPES = {
  'smoke': DigitRecipe(
    train_steps=4, num_latents=2, num_latent_channels=16, num_layers=1, batch_size=8, num_test_images=100
  ),
  'demo': DigitRecipe(train_steps=500),
  'full': DigitRecipe(train_steps=20_000, num_latents=16, num_latent_channels=128, num_layers=4),
}


def digit_config(recipe: DigitRecipe, image_shape: tuple[int, int, int]) -> UnifiedPerceiverConfig:
  """Pixels in tokens of 2 x 2 bytes and letters of one byte; the first latent of a timestep says the next letter."""
  pixels = pixel_adapter(image_shape, patch_size=2, num_bands=7)
  letters = EmbeddingAdapterConfig(num_embeddings=VOCAB_SIZE, num_channels=24)
  return UnifiedPerceiverConfig(
    input_adapter=ModalityAdaptersConfig(
      modalities=(('letters', letters), ('pixels', pixels)), num_channels=pixels.num_channels + 4
    ),
    latents=LearnedLatents(num_latents=recipe.num_latents, num_timesteps=NUM_TIMESTEPS, encoder_window=1),
    num_latent_channels=recipe.num_latent_channels,
    num_self_attends_per_block=recipe.num_layers,
    cross_attend=LayerConfig(num_heads=2, qk_channels=64),
    self_attend=LayerConfig(num_heads=4),
    decoder=IdentityDecoderConfig(num_outputs=VOCAB_SIZE),
  )


def name_ids(labels: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n t']:
  """The bytes of each label's name and EOS, padded on the right."""
  ids = np.full((len(NAMES), NUM_TIMESTEPS), PAD, np.int32)
  for row, name in zip(ids, NAMES, strict=True):
    row[: len(name)] = ByteTokenizer().encode(name)
    row[len(name)] = EOS
  return ids[labels]


Order = Int[np.ndarray, 'm']


def image_tokens(images: Array, order: Int[Array, 'm'] | None = None, place: Int[Array, 'm'] | None = None) -> Inputs:
  """An image as a source.

  Args:
    order: shuffles the tokens, positions with them: the token of rank i is number order[i].
    place: shuffles the positions alone: token i says that it is where token place[i] is.
  """
  tokens = pixel_tokens(images, patch_size=2)
  if order is not None:
    tokens = jax.tree.map(lambda leaf: leaf[:, order], tokens)
  position = tokens.position if place is None else tokens.position[:, place]
  time = jnp.full(tokens.values.shape[:2], SOURCE_TIME, jnp.int32)
  return {'pixels': dataclasses.replace(tokens, position=position, time=time)}


def torn(images: UInt8[np.ndarray, 'n y x c'], place: Order) -> UInt8[np.ndarray, 'n y x c']:
  """What the model is told it sees when positions are shuffled alone."""
  height, channels = images.shape[1], images.shape[3]
  tokens = rearrange(images, 'n (y i) (x j) c -> n (y x) (i j c)', i=2, j=2)
  moved = np.empty_like(tokens)
  moved[:, place] = tokens
  return rearrange(moved, 'n (y x) (i j c) -> n (y i) (x j) c', y=height // 2, i=2, j=2, c=channels)


def letter_tokens(ids: Int[Array, 'b t']) -> Inputs:
  """The byte that each timestep brings."""
  time = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
  return {'letters': Tokens(values=ids, time=time, valid=ids != PAD)}


def next_letter_logits(
  model: UnifiedPerceiver, source: Inputs, names: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of each letter of the names from the image and the letters before it."""
  known = jnp.concatenate([jnp.full_like(names[:, :1], BOS), names[:, :-1]], axis=1)
  outputs = model(dict(source) | letter_tokens(known), rngs=rngs)
  return outputs.values[:, :: model.config.latents.num_latents]


def name_loss(model: nnx.Module, batch: Mapping[str, Any], rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
  """Cross-entropy of the next byte; with rngs, of images turned, zoomed and shifted a little."""
  images, names = jnp.asarray(batch['image']), jnp.asarray(batch['name'])
  if rngs is not None:
    moves = {'max_degrees': 10.0, 'max_scale': 1.1, 'max_shear': 0.1, 'max_shift': images.shape[1] / 14}
    images = random_affine(rngs.dropout(), images, **moves)
  logits = next_letter_logits(model, image_tokens(images), names, rngs)
  return cross_entropy(logits, names, valid=names != PAD), {}


def train_namer(
  model: UnifiedPerceiver,
  train: Mapping[str, np.ndarray],
  validation: Mapping[str, np.ndarray],
  *,
  recipe: DigitRecipe,
  seed: int,
  **fit_settings: Any,
) -> FitResult:
  """Muon and Adam, and a moving average of the weights; validation accuracy at the end."""
  source = ArraySource({'image': train['image'], 'name': name_ids(train['label'])})
  num_steps = recipe.train_steps
  return fit(
    model,
    name_loss,
    lambda step: training_batches(source, recipe.batch_size, seed=seed, start_step=step),
    optimizer=muon_and_adam(
      num_steps, learning_rate=recipe.learning_rate, matrix_learning_rate=recipe.matrix_learning_rate
    ),
    num_steps=num_steps,
    seed=seed,
    evaluate=lambda trained: {'validation_accuracy': accuracy_percent(named(trained, validation['image']), validation)},
    ema_decay=0.99,
    **fit_settings,
  )


def likeliest_letter(outputs: Float[Array, 'b s e'], key: Array) -> Int[Array, 'b']:
  """What `generate` calls: the byte that the newest timestep's first latent scores highest."""
  del key
  return jnp.argmax(outputs[:, 0], axis=-1)


def one_letter(ids: Int[Array, 'b']) -> Inputs:
  """A timestep's only token."""
  return {'letters': Tokens(values=ids[:, None])}


@jax.jit
def _named(model: UnifiedPerceiver, images: Array, order: Int[Array, 'm'], place: Int[Array, 'm']) -> Int[Array, 'b t']:
  return generate(
    model,
    jnp.full((len(images), 1), BOS, jnp.int32),
    num_steps=NUM_TIMESTEPS,
    window=TimestepWindow(max_timesteps=NUM_TIMESTEPS, num_kept=NUM_TIMESTEPS),
    choose=likeliest_letter,
    tokens_of=one_letter,
    source=image_tokens(images, order, place),
  )


def named(
  model: UnifiedPerceiver,
  images: np.ndarray,
  *,
  order: Order | None = None,
  place: Order | None = None,
  batch_size: int = 100,
) -> list[str]:
  """What the model calls each image, byte by byte, likeliest first; `order` and `place` as in `image_tokens`."""
  same, starts = np.arange(images[0].size // 4), range(0, len(images), batch_size)
  order, place = (same if rank is None else rank for rank in (order, place))
  ids = [np.asarray(_named(model, images[i : i + batch_size], order, place)) for i in starts]
  return [ByteTokenizer().decode(row) for row in until(np.concatenate(ids), EOS)]


def accuracy_percent(said: list[str], examples: Mapping[str, np.ndarray]) -> float:
  """Share of images whose name was spelled right to the last letter."""
  return 100.0 * float(np.mean([name == NAMES[label] for name, label in zip(said, examples['label'], strict=True)]))
