"""The mirrored copy task of Perceiver AR (2202.07765; perceiver-ar `dataset.py`) as a ladder of lengths.

A sequence is random bytes and then the same bytes backwards; what is scored is the second half. The farthest byte to
copy is as far away as the sequence is long, so nothing with a shorter memory can do better than guess.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.adapters import INITIAL_SCALE, EmbeddingAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.modalities.text import BOS, EOS, NUM_SPECIAL, VOCAB_SIZE
from perceiver_lib.models.last_inputs import rank_from_end, validity
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.positions import SinusoidalPositions
from perceiver_lib.training import checkpoints
from perceiver_lib.training.fit import FitResult, LossFn, fit
from perceiver_lib.training.optimizers import muon_and_adam
from perceiver_lib.training.sequences import NextTokens, next_token_loss, next_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
  """One length of the ladder: `length` tokens a sequence, of which a call predicts `num_latents`."""

  length: int
  num_latents: int
  batch_size: int
  num_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyRecipe:
  """Settings of one profile.

  Attributes:
    ladder: shortest first; each rung begins with the weights of the one before.
    window: bytes that the windowed Transformer sees, at rung number `windowed_rung`.
    width, num_layers: channels and self-attends; width 0 = the paper's own model.
    learning_rate, matrix_learning_rate: of `muon_and_adam`, anew on each rung.
  """

  ladder: tuple[Rung, ...]
  windowed_rung: int
  window: int
  width: int = 128
  num_layers: int = 1
  learning_rate: float = 4e-3
  matrix_learning_rate: float = 0.02


def copy_config(recipe: CopyRecipe) -> PerceiverARConfig:
  """Fixed sinusoidal positions, added, as the paper copies; `width=0` is its model, with this vocabulary."""
  if recipe.width == 0:
    paper = PerceiverARConfig.paper_copy()
    adapter = dataclasses.replace(paper.input_adapter, num_embeddings=VOCAB_SIZE)
    return dataclasses.replace(paper, input_adapter=adapter, num_outputs=VOCAB_SIZE)
  layer = LayerConfig(num_heads=4, widening_factor=4, activation='squared_relu')
  width = recipe.width
  return PerceiverARConfig(
    input_adapter=EmbeddingAdapterConfig(
      num_embeddings=VOCAB_SIZE, num_channels=width, position=SinusoidalPositions(num_channels=width)
    ),
    num_latents=recipe.ladder[0].num_latents,
    num_latent_channels=width,
    num_outputs=VOCAB_SIZE,
    num_self_attends=recipe.num_layers,
    cross_attend=layer,
    self_attend=layer,
  )


def copy_model(recipe: CopyRecipe, seed: int) -> PerceiverAR:
  """With byte vectors that begin as long as the position vectors: 35 times shorter, no byte could be read for long."""
  model = PerceiverAR(copy_config(recipe), rngs=nnx.Rngs(seed))
  embedding = model.input_adapter.embedding
  embedding[...] = embedding[...] * (2**-0.5 / INITIAL_SCALE)
  return model


def copy_batch(length: int, batch_size: int, seed: int, step: int) -> dict[str, np.ndarray]:
  """Start, length / 2 - 1 random bytes, the same bytes backwards, end: perceiver-ar `dataset.py`, `random_mirrored`.

  'position' counts from the mirror, so that a byte and its copy lie at p and -p (as inputs) whatever the length, and a
  rung can go on with the weights of the one before. The paper's own positions count from the start.
  """
  half = np.random.default_rng((seed, length, step)).integers(0, 256, (batch_size, length // 2 - 1)) + NUM_SPECIAL
  ends = (np.full((batch_size, 1), token) for token in (BOS, EOS))
  first, last = ends
  position = np.arange(length, dtype=np.int32) - (length // 2 - 1)
  return {
    'ids': np.concatenate([first, half, half[:, ::-1], last], axis=1).astype(np.int32),
    'position': np.tile(position[None, :, None], (batch_size, 1, 1)),
  }


def copy_batches(
  rung: Rung, seed: int, start_step: int = 0, window: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of a rung from a step on; 'window' is data, so that both models run one compiled program."""
  seen = np.full((rung.batch_size, 1), window or rung.length, np.int32)
  return (
    copy_batch(rung.length, rung.batch_size, seed, step) | {'window': seen} for step in itertools.count(start_step)
  )


def copy_examples(ids: Int[Array, 'b l'], position: Int[Array, 'b l 1']) -> NextTokens:
  """Targets are the second half, from the first copied byte to the end token."""
  second = jnp.broadcast_to(jnp.arange(ids.shape[1]) >= ids.shape[1] // 2, ids.shape)
  return next_tokens(ids, label_mask=second, position=position)


def last_inputs(examples: NextTokens, window: Int[Array, ''] | Int[Array, 'b 1'] | int) -> NextTokens:
  """Hides all but the last `window` inputs of a row. With a latent on each of them nothing is left but a Transformer.

  A Perceiver AR whose context is its latents is a causal Transformer of one layer more than its self-attends.
  """
  valid = validity(examples.inputs)
  valid = valid & (rank_from_end(valid) < window)
  return dataclasses.replace(
    examples, inputs=dataclasses.replace(examples.inputs, valid=valid), scored=examples.scored & valid
  )


def first_inputs(examples: NextTokens, count: Int[Array, ''] | Int[Array, 'b 1']) -> NextTokens:
  """Hides all but the first `count` inputs of a row."""
  shape = examples.targets.shape
  valid = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None] < count, shape)
  inputs = dataclasses.replace(examples.inputs, valid=valid)
  return dataclasses.replace(examples, inputs=inputs, scored=examples.scored & valid)


def crop_lengths(key: Array, batch_size: int, length: int, num_latents: int) -> Int[Array, 'b 1']:
  """Inputs that each row keeps in a training step: crops end anywhere in the second half.

  Ends up to `num_latents` - 1 behind the last input count as there, so that the farthest copies have a latent at least
  as often as the others. With ends drawn among the inputs alone they would hardly be trained.
  """
  end = jax.random.randint(key, (batch_size, 1), length // 2, length - 1 + num_latents)
  return jnp.minimum(end, length - 1)


@functools.lru_cache(maxsize=16)
def copy_loss(num_latents: int) -> LossFn:
  """Loss on the crops of `crop_lengths`, with perceiver-ar's z-loss of 1e-4."""

  def loss_fn(model: PerceiverAR, batch: Mapping[str, Array], rngs: nnx.Rngs) -> tuple[Array, Mapping[str, Array]]:
    examples = copy_examples(batch['ids'], batch['position'])
    kept = crop_lengths(rngs.dropout(), *batch['ids'].shape, num_latents)
    examples = last_inputs(first_inputs(examples, kept), batch['window'])
    logits = model(examples.inputs, num_latents=num_latents, rngs=rngs)
    return next_token_loss(logits, examples, z_loss=1e-4)

  return loss_fn


def copy_accuracy(
  model: nnx.Module, rung: Rung, seed: int, *, window: int | None = None, num_sequences: int = 16
) -> tuple[Int[np.ndarray, 'd'], Float[np.ndarray, 'd']]:
  """Distances between a byte and its copy, 1 3 5 ..., and the share of new sequences in which it is right at each.

  A window slides byte by byte, so that every prediction sees all of it; else crops move on by the latents.
  """
  batch = copy_batch(rung.length, num_sequences, seed + 1_000_003, 0)
  num_targets = rung.length // 2 - 1
  step = rung.num_latents if window is None else 1
  seen = jnp.int32(window or rung.length)
  right = np.zeros((num_sequences, num_targets), bool)
  for first in range(0, num_targets, step):
    stop = min(first + step, num_targets)
    predicted = np.asarray(_copied(model, batch, jnp.int32(rung.length // 2 - 1 + stop), seen, rung.num_latents))
    truth = batch['ids'][:, rung.length // 2 + first : rung.length // 2 + stop]
    right[:, first:stop] = predicted[:, first - stop :] == truth
  return 2 * np.arange(num_targets) + 1, right.mean(axis=0)


@functools.partial(nnx.jit, static_argnums=4)
def _copied(
  model: nnx.Module, batch: Mapping[str, Array], num_inputs: Int[Array, ''], window: Int[Array, ''], num_latents: int
) -> Int[Array, 'b n']:
  """The likeliest next tokens at the last latents of the first `num_inputs` inputs."""
  examples = copy_examples(batch['ids'], batch['position'])
  examples = last_inputs(first_inputs(examples, num_inputs), window)
  return jnp.argmax(model(examples.inputs, num_latents=num_latents).values, axis=-1)


def climb(
  model: PerceiverAR,
  rung: Rung,
  recipe: CopyRecipe,
  seed: int,
  *,
  window: int | None = None,
  checkpoint_dir: Path | None = None,
  **fit_settings: Any,
) -> FitResult:
  """Trains one rung from the weights of the model; with a window, the windowed Transformer in the same steps."""
  settings = {'task': 'mirrored copy', 'recipe': recipe, 'rung': rung, 'window': window}
  return fit(
    model,
    copy_loss(rung.num_latents),
    lambda step: copy_batches(rung, seed, step, window),
    optimizer=muon_and_adam(
      rung.num_steps,
      learning_rate=recipe.learning_rate,
      matrix_learning_rate=recipe.matrix_learning_rate,
    ),
    num_steps=rung.num_steps,
    seed=seed,
    checkpoint=checkpoint_dir
    and checkpoints.Checkpointing(
      directory=checkpoint_dir, fingerprint=checkpoints.fingerprint(**settings), every=rung.num_steps
    ),
    **fit_settings,
  )
