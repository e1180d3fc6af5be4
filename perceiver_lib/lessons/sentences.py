"""How notebook 09 trains the masked language model whose reads it shows: lines of text, asked for byte by byte."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from perceiver_lib.data.text import Documents, RandomCrops, Windows
from perceiver_lib.modalities.text import MASK, ByteTokenizer, hidden_words
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.optimizers import muon_and_adam

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceRecipe:
  """A masked language model whose queries know their place only, so that every letter must pass through the latents.

  Attributes:
    length: bytes of a window, one line of text or two.
    mask_rate: share of the words that are hidden. All bytes are asked for, hidden or not: what is visible teaches
      reading within minutes, and is scored apart.
  """

  train_steps: int
  length: int = 64
  num_latents: int = 16
  num_latent_channels: int = 64
  num_layers: int = 1
  num_heads: int = 4
  num_channels: int = 64
  mask_rate: float = 0.15
  batch_size: int = 32
  learning_rate: float = 4e-3
  matrix_learning_rate: float = 0.02


def sentence_config(recipe: SentenceRecipe) -> PerceiverIOConfig:
  """The published masked language model, small: learned positions, learned queries, output tied to the embedding."""
  return PerceiverIOConfig.masked_language(
    num_latents=recipe.num_latents,
    num_latent_channels=recipe.num_latent_channels,
    num_self_attends=recipe.num_layers,
    num_channels=recipe.num_channels,
    qk_channels=recipe.num_latent_channels,
    num_heads=recipe.num_heads,
    length=recipe.length,
  )


def sentence_tokens(ids: Int[Array, 'b m'], valid: Array | None = None) -> Tokens:
  return Tokens(values=ids, position=jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :, None], valid=valid)


def sentence_batches(
  documents: Documents, recipe: SentenceRecipe, seed: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """start_step -> batches of random crops, whole words hidden: 'ids' with MASK and the 'labels' of all bytes."""
  crops = RandomCrops(documents, recipe.length, recipe.batch_size, seed=seed)

  def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count(start_step):
      yield _with_holes(crops.batch(step), recipe, np.random.default_rng((seed, 3, step)))

  return batches


def _with_holes(raw: Arrays, recipe: SentenceRecipe, random: np.random.Generator) -> dict[str, np.ndarray]:
  hidden = hidden_words(raw, random, rate=recipe.mask_rate, num_queries=1)
  return {'ids': hidden['ids'], 'labels': ByteTokenizer.ids(raw['bytes'], raw['valid'])}


def sentence_examples(documents: Documents, recipe: SentenceRecipe, count: int) -> dict[str, np.ndarray]:
  """Windows spread evenly over held-out documents: 'bytes', 'labels', and 'ids' with hidden words."""
  windows = Windows(documents, recipe.length)
  raw = windows.rows(np.linspace(0, len(windows) - 1, count).astype(np.int64).tolist())
  return {'bytes': raw['bytes']} | _with_holes(raw, recipe, np.random.default_rng(0))


def sentence_loss(model: PerceiverIO, batch: Arrays, rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
  """Cross-entropy over all bytes; accuracy where they are visible and where they are hidden."""
  ids, labels = jnp.asarray(batch['ids']), jnp.asarray(batch['labels'])
  logits = model(sentence_tokens(ids))
  right, hidden = jnp.argmax(logits, axis=-1) == labels, ids == MASK

  def share(where: Array) -> Array:
    return jnp.sum(right & where, dtype=jnp.float32) / jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)

  return cross_entropy(logits, labels), {'visible': share(~hidden), 'hidden': share(hidden)}


def train_sentences(
  model: PerceiverIO, documents: Documents, *, recipe: SentenceRecipe, seed: int, **fit_settings: Any
) -> FitResult:
  """Muon and Adam, and a moving average of the weights."""
  return fit(
    model,
    sentence_loss,
    sentence_batches(documents, recipe, seed),
    optimizer=muon_and_adam(
      recipe.train_steps, learning_rate=recipe.learning_rate, matrix_learning_rate=recipe.matrix_learning_rate
    ),
    num_steps=recipe.train_steps,
    seed=seed,
    ema_decay=0.99,
    **fit_settings,
  )
