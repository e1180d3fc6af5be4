"""How notebook 06 trains a byte model of Shakespeare and scores it; the copy task has its own file.

Every function takes arrays and returns arrays, numbers or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from perceiver_lib.baselines.text import compressor_bits, ngram_bits, unigram_bits
from perceiver_lib.data.text import Documents, RandomCrops
from perceiver_lib.lessons.mirrored_copy import CopyRecipe, Rung
from perceiver_lib.modalities.text import NUM_SPECIAL, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.training import checkpoints
from perceiver_lib.training.fit import FitResult, LossFn, fit
from perceiver_lib.training.optimizers import muon_and_adam
from perceiver_lib.training.sequences import FullLatents, next_token_loss, next_tokens, random_crop
from perceiver_lib.training.strided import StridedScore, StridedWindows, evaluate_strided

LINE_END = NUM_SPECIAL + ord('\n')
"""Stands before every text, as in `text_baselines.ngram_bits`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe:
  """Settings of one profile; those of `demo` were chosen by the loss on training crops, each seen once.

  Attributes:
    copy: of the mirrored copy task.
    context_length, num_latents, width, num_layers, num_heads: of the language model.
    learning_rate: of Adam; `matrix_learning_rate` that of Muon, for the matrices inside the layers.
    scored_bytes: of each validation play, for choices and sweeps.
    stride: of the test.
    contexts, latent_numbers, strides: at which the trained model is also measured.
  """

  copy: CopyRecipe
  context_length: int
  num_latents: int
  width: int
  num_layers: int
  num_heads: int = 4
  dropout: float = 0.0
  batch_size: int = 16
  train_steps: int
  learning_rate: float = 4e-3
  matrix_learning_rate: float = 0.02
  scored_bytes: int
  stride: int
  contexts: tuple[int, ...]
  latent_numbers: tuple[int, ...]
  strides: tuple[int, ...]


RECIPES = {
  'smoke': TextRecipe(
    copy=CopyRecipe(
      ladder=(Rung(length=32, num_latents=8, batch_size=2, num_steps=2),),
      windowed_rung=0,
      window=8,
      width=16,
    ),
    context_length=32,
    num_latents=16,
    width=16,
    num_layers=1,
    num_heads=2,
    batch_size=2,
    train_steps=2,
    scored_bytes=64,
    stride=16,
    contexts=(16, 32),
    latent_numbers=(8, 16),
    strides=(16,),
  ),
  'demo': TextRecipe(
    copy=CopyRecipe(
      ladder=(
        Rung(length=16, num_latents=7, batch_size=64, num_steps=180),
        Rung(length=64, num_latents=31, batch_size=32, num_steps=180),
        Rung(length=256, num_latents=64, batch_size=16, num_steps=260),
        Rung(length=1_024, num_latents=128, batch_size=8, num_steps=170),
      ),
      windowed_rung=2,
      window=64,
      learning_rate=8e-3,
      matrix_learning_rate=0.04,
    ),
    context_length=256,
    num_latents=128,
    width=128,
    num_layers=3,
    num_heads=2,
    batch_size=8,
    train_steps=1_000,
    learning_rate=8e-3,
    matrix_learning_rate=0.04,
    scored_bytes=4_096,
    stride=64,
    contexts=(16, 32, 64, 256),
    latent_numbers=(16, 32, 64, 128),
    strides=(128, 64, 32, 16),
  ),
  'full': TextRecipe(
    copy=CopyRecipe(
      ladder=(
        Rung(length=16, num_latents=7, batch_size=128, num_steps=500),
        Rung(length=64, num_latents=31, batch_size=128, num_steps=500),
        Rung(length=256, num_latents=127, batch_size=64, num_steps=500),
        Rung(length=1_024, num_latents=256, batch_size=64, num_steps=1_000),
        Rung(length=8_192, num_latents=512, batch_size=32, num_steps=2_000),
      ),
      windowed_rung=2,
      window=64,
      width=256,
      num_layers=2,
    ),
    context_length=1_024,
    num_latents=512,
    width=512,
    num_layers=8,
    num_heads=8,
    dropout=0.2,
    batch_size=64,
    train_steps=6_000,
    learning_rate=2e-3,
    matrix_learning_rate=0.01,
    scored_bytes=65_536,
    stride=64,
    contexts=(64, 128, 256, 512, 1_024),
    latent_numbers=(64, 128, 256, 512),
    strides=(512, 256, 128, 64),
  ),
}
RECIPES['paper'] = dataclasses.replace(
  RECIPES['full'],
  # The paper's copying model, length, batch and steps; to climb there from shorter rungs, and Muon, are ours.
  copy=CopyRecipe(
    ladder=(
      Rung(length=32, num_latents=15, batch_size=1_024, num_steps=5_000),
      Rung(length=1_024, num_latents=511, batch_size=1_024, num_steps=5_000),
      Rung(length=131_072, num_latents=1_024, batch_size=4_096, num_steps=25_000),
    ),
    windowed_rung=1,
    window=64,
    width=0,
  ),
)


def language_config(recipe: TextRecipe) -> PerceiverARConfig:
  """Bytes with rotary positions on half of each head, as the paper's text models."""
  return PerceiverARConfig.of_bytes(
    num_channels=recipe.width,
    num_latents=recipe.num_latents,
    num_self_attends=recipe.num_layers,
    num_heads=recipe.num_heads,
    vocabulary_size=VOCAB_SIZE,
    dropout=recipe.dropout,
  )


@functools.lru_cache(maxsize=16)
def language_loss(num_latents: int) -> LossFn:
  """Loss on random crops that fill every latent."""

  def loss_fn(model: PerceiverAR, batch: Mapping[str, Array], rngs: nnx.Rngs) -> tuple[Array, Mapping[str, Array]]:
    ids = batch['bytes'].astype(jnp.int32) + NUM_SPECIAL
    examples = next_tokens(ids, valid=batch['valid'], begin_token=LINE_END)
    examples = random_crop(examples, FullLatents(num_latents=num_latents), rngs.dropout())
    return next_token_loss(model(examples.inputs, num_latents=num_latents, rngs=rngs), examples)

  return loss_fn


def train_language_model(
  model: PerceiverAR,
  train: Documents,
  validation: Documents,
  *,
  recipe: TextRecipe,
  seed: int,
  evaluations: int = 4,
  checkpoint_dir: Path | None = None,
) -> FitResult:
  """Random crops of whole plays; bits per byte of the validation plays' first bytes `evaluations` times."""
  crops = RandomCrops(train, recipe.context_length, recipe.batch_size, seed=seed)
  documents = texts_as_ids(validation, recipe.scored_bytes)

  def evaluate(trained: PerceiverAR) -> dict[str, float]:
    score = bits_of(trained, documents, recipe, stride=recipe.num_latents)
    return {'validation_bits_per_byte': score.bits_per_byte}

  return fit(
    model,
    language_loss(recipe.num_latents),
    crops.batches,
    optimizer=muon_and_adam(
      recipe.train_steps,
      learning_rate=recipe.learning_rate,
      matrix_learning_rate=recipe.matrix_learning_rate,
    ),
    num_steps=recipe.train_steps,
    seed=seed,
    evaluate=evaluate,
    evaluations=evaluations,
    checkpoint=checkpoint_dir
    and checkpoints.Checkpointing(
      directory=checkpoint_dir,
      fingerprint=checkpoints.fingerprint(task='language', recipe=recipe, data=train.checksum, evaluations=evaluations),
      every=max(1, recipe.train_steps // 4),
    ),
  )


def texts_as_ids(documents: Documents, num_bytes: int | None = None) -> list[Int[np.ndarray, '_']]:
  """Every document, or its first bytes, as ids."""
  texts = (np.frombuffer(documents[index]['text'], np.uint8)[:num_bytes] for index in range(len(documents)))
  return [ByteTokenizer.ids(text) for text in texts]


def bits_of(
  model: PerceiverAR,
  documents: Sequence[Int[np.ndarray, '_']],
  recipe: TextRecipe,
  *,
  stride: int,
  context_length: int | None = None,
  num_latents: int | None = None,
) -> StridedScore:
  """Strided evaluation; context and latents are the recipe's unless given."""
  windows = StridedWindows(
    documents=documents,
    context_length=context_length or recipe.context_length,
    stride=stride,
    begin_token=LINE_END,
  )
  return evaluate_strided(model, windows, num_latents=num_latents or recipe.num_latents)


def baselines(train: bytes, test: bytes, *, max_order: int = 6) -> dict[str, float]:
  """Bits a byte of tables and compressors that may read the training text, and of compressors that may not."""
  orders = ngram_bits(train, test, max_order=max_order)
  named = {'unigram': unigram_bits(train, test)}
  named |= {f'{order}-gram (Kneser-Ney)': bits for order, bits in enumerate(orders, 1) if order in (2, 3, max_order)}
  return named | compressor_bits(train, test)
