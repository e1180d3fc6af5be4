"""How notebook 07 trains one Perceiver AR to continue and to harmonise chorales, measures it and lets it write.

Every function takes arrays and returns arrays, numbers or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from perceiver_lib.adapters import FactoredPositions
from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.baselines.music import MusicScore
from perceiver_lib.data.chorales import ChoraleSource
from perceiver_lib.data.loading import Transform, training_batches
from perceiver_lib.generation.stream import generate
from perceiver_lib.modalities import music
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.tokens import Tokens
from perceiver_lib.training import checkpoints, metrics
from perceiver_lib.training.fit import FitResult, LossFn, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.optimizers import muon_and_adam
from perceiver_lib.training.sequences import (
  FullLatents,
  NextTokens,
  latent_targets,
  next_token_loss,
  next_tokens,
  random_crop,
)

Positions = Literal['score', 'index']
Pieces = dict[str, np.ndarray]
"""Whole pieces, as `perceiver_lib.data.chorales` reads them."""

ORDERS: tuple[music.Order, ...] = ('interleaved', 'soprano_first')
POSITION_TABLES = (512, music.NUM_VOICES, 12)
"""Time steps, voices and steps in a bar that have a learned vector; the longest chorale has 388 steps."""
MUSIC_ONLY = np.arange(music.VOCABULARY_SIZE)[None] >= music.REST
"""`allowed` of `generation.generate`: pitches and rests, no end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MusicRecipe:
  """Settings of one profile; those of `demo` were chosen on the validation tunes.

  Attributes:
    num_steps: of a training window, hence 4 num_steps tokens.
    num_latents: the last so many of them.
    stride: time steps that a window of an evaluation scores, at most num_latents / 4.
    learning_rate: of Adam; `matrix_learning_rate` that of Muon, for the matrices inside the layers.
    num_harmonised: opening of how many held-out tunes the model harmonises.
  """

  num_steps: int
  num_latents: int
  width: int
  num_layers: int
  num_heads: int = 4
  dropout: float = 0.0
  batch_size: int = 8
  train_steps: int
  learning_rate: float = 4e-3
  matrix_learning_rate: float = 0.02
  stride: int
  num_harmonised: int = 16


RECIPES = {
  'smoke': MusicRecipe(
    num_steps=40, num_latents=64, width=16, num_layers=1, num_heads=2,
    batch_size=2, train_steps=2, stride=4, num_harmonised=2,
  ),
  'demo': MusicRecipe(num_steps=128, num_latents=128, width=128, num_layers=4, train_steps=800, stride=16),
  'full': MusicRecipe(
    num_steps=192, num_latents=384, width=256, num_layers=8, num_heads=8, dropout=0.3,
    batch_size=64, train_steps=6_000, learning_rate=2e-3, matrix_learning_rate=0.01, stride=16, num_harmonised=57,
  ),
}  # fmt: skip


def short(recipe: MusicRecipe, train_steps: int = 400) -> MusicRecipe:
  """The recipe of a comparison: half the width, two layers, windows of a quarter, half of them latents."""
  num_steps = recipe.num_steps // 4
  return dataclasses.replace(
    recipe,
    num_steps=num_steps,
    num_latents=2 * num_steps,
    width=recipe.width // 2,
    num_layers=min(recipe.num_layers, 2),
    train_steps=min(train_steps, recipe.train_steps),
    stride=min(recipe.stride, num_steps // 2),
  )


def music_config(recipe: MusicRecipe) -> PerceiverARConfig:
  """Ids of voices with their place in the score.

  Vectors of the time step, the voice and the step in the bar are added to the ids, as perceiver-ar adds those of row,
  column and channel of an image; queries and keys also rotate by the time step, so that one bar ago looks alike
  everywhere.
  """
  config = PerceiverARConfig.of_bytes(
    num_channels=recipe.width,
    num_latents=recipe.num_latents,
    num_self_attends=recipe.num_layers,
    num_heads=recipe.num_heads,
    vocabulary_size=music.VOCABULARY_SIZE,
    dropout=recipe.dropout,
  )
  tables = FactoredPositions(shape=POSITION_TABLES, num_channels=recipe.width)
  return dataclasses.replace(config, input_adapter=dataclasses.replace(config.input_adapter, position=tables))


def examples_of(batch: Mapping[str, Array | np.ndarray]) -> NextTokens:
  """A batch of `music.tokens` as inputs and targets."""
  ids, valid, scored, position = (jnp.asarray(batch[name]) for name in ('ids', 'valid', 'scored', 'position'))
  return next_tokens(ids, valid=valid, label_mask=scored, position=position)


def with_plain_indices(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The batch with the place of each token in the sequence as its position, and nothing else: (place, 0, 0)."""
  position = np.zeros_like(batch['position'])
  position[..., 0] = np.arange(position.shape[1])
  return {**batch, 'position': position}


@functools.lru_cache(maxsize=16)
def music_loss(num_latents: int) -> LossFn:
  """Loss on random crops that fill every latent."""

  def loss_fn(model: PerceiverAR, batch: Mapping, rngs: nnx.Rngs) -> tuple[Array, Mapping[str, Array]]:
    examples = random_crop(examples_of(batch), FullLatents(num_latents=num_latents), rngs.dropout())
    return next_token_loss(model(examples.inputs, num_latents=num_latents, rngs=rngs), examples)

  return loss_fn


def windows_in_orders(num_steps: int, orders: Sequence[music.Order], positions: Positions = 'score') -> Transform:
  """`music.training_windows`, an equal share of every batch in each of the orders."""
  transforms = [music.training_windows(num_steps, order=order) for order in orders]

  def transform(batch: Mapping[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
    shares = np.array_split(np.arange(len(batch['num_steps'])), len(transforms))
    parts = [
      of_order({name: array[rows] for name, array in batch.items()}, random)
      for of_order, rows in zip(transforms, shares, strict=True)
      if len(rows)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return with_plain_indices(joined) if positions == 'index' else joined

  return transform


def train_music(
  model: PerceiverAR,
  train: ChoraleSource,
  validation: Pieces,
  *,
  recipe: MusicRecipe,
  seed: int,
  orders: Sequence[music.Order] = ORDERS,
  positions: Positions = 'score',
  evaluations: int = 4,
  checkpoint_dir: Path | None = None,
) -> FitResult:
  """Random windows in random keys; the score of such windows of the validation tunes `evaluations` times."""
  transform = windows_in_orders(recipe.num_steps, orders, positions)

  def evaluate(trained: PerceiverAR) -> dict[str, float]:
    stride = recipe.num_latents // music.NUM_VOICES
    settings = {'num_steps': recipe.num_steps, 'stride': stride, 'positions': positions}
    scores = {order: score_of(trained, validation, recipe, order, **settings) for order in orders}
    return {f'{order}_nats_per_token': score.nats_per_token for order, score in scores.items()}

  identity = {'recipe': recipe, 'orders': orders, 'positions': positions, 'evaluations': evaluations}
  return fit(
    model,
    music_loss(recipe.num_latents),
    lambda step: training_batches(train, recipe.batch_size, seed=seed, start_step=step, transform=transform),
    optimizer=muon_and_adam(
      recipe.train_steps, learning_rate=recipe.learning_rate, matrix_learning_rate=recipe.matrix_learning_rate
    ),
    num_steps=recipe.train_steps,
    seed=seed,
    evaluate=evaluate,
    evaluations=evaluations,
    checkpoint=checkpoint_dir
    and checkpoints.Checkpointing(
      directory=checkpoint_dir,
      fingerprint=checkpoints.fingerprint(pieces=train.names, **identity),
      every=max(1, recipe.train_steps // 4),
    ),
  )


def score_of(
  model: PerceiverAR,
  pieces: Pieces,
  recipe: MusicRecipe,
  order: music.Order = 'interleaved',
  *,
  num_steps: int | None = None,
  stride: int | None = None,
  positions: Positions = 'score',
  batch_size: int = 16,
) -> MusicScore:
  """Every id of whole pieces scored once.

  Args:
    num_steps: of a window; None = the recipe's, or to harmonise whole pieces, so that all of the soprano is given.
    stride: time steps that a window scores; None = the recipe's.
  """
  if num_steps is None:
    num_steps = recipe.num_steps if order == 'interleaved' else int(pieces['num_steps'].max()) + 2
  windows = music.evaluation_windows(pieces, num_steps, stride=stride or recipe.stride, order=order)
  del windows['piece']
  if positions == 'index':
    windows = with_plain_indices(windows)
  count = len(windows['ids'])

  def batches():
    for first in range(0, count, batch_size):
      rows = np.arange(first, first + batch_size)
      batch = {name: array[np.minimum(rows, count - 1)] for name, array in windows.items()}
      yield batch | {'example_valid': rows < count}

  means = metrics.evaluate_dataset(model, _scored(recipe.num_latents), batches())
  return MusicScore(means['accuracy'], means['nats_per_token'])


@functools.lru_cache(maxsize=16)
def _scored(num_latents: int):
  def scored_nats(model: PerceiverAR, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    examples = examples_of(batch)
    logits = model(examples.inputs, num_latents=num_latents)
    targets, scored = latent_targets(examples, logits)
    nats = cross_entropy(logits.values, targets, valid=scored, reduction='none')
    return {'nats_per_token': (nats, scored), 'accuracy': (metrics.correct(logits.values, targets), scored)}

  return scored_nats


def bass_first(pieces: Pieces) -> Pieces:
  """The same pieces with the voices upside down: a step is written bass, tenor, alto, soprano."""
  return pieces | {name: pieces[name][..., ::-1] for name in ('pitch', 'onset')}


@functools.partial(nnx.jit, static_argnums=2)
def outputs(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Tokens:
  """The model's outputs, compiled."""
  return model(inputs, num_latents=num_latents)


def continue_piece(
  model: PerceiverAR, pieces: Pieces, row: int, recipe: MusicRecipe, *, given_steps: int, num_steps: int, **sampling
) -> Int[np.ndarray, 't 4']:
  """The opening of a piece and what the model writes behind it, `num_steps` time steps in all; bars go on as there.

  Args:
    sampling: `sampler` and `seed` of `generation.generate`.
  """
  opening = opening_of(pieces, np.array([row]), num_steps)
  given = music.NUM_VOICES * (1 + given_steps)
  batch = music.tokens(opening)
  return _written(model, batch, given, recipe, 'interleaved', sampling)[0, 1:]


def harmonise(
  model: PerceiverAR, pieces: Pieces, rows: Int[np.ndarray, 'b'], recipe: MusicRecipe, *, num_steps: int, **sampling
) -> Int[np.ndarray, 'b t 4']:
  """The sopranos of the first `num_steps` time steps with alto, tenor and bass by the model."""
  opening = opening_of(pieces, rows, num_steps)
  # Given are the soprano from START on, and START in the three other voices.
  given = num_steps + 1 + music.NUM_VOICES - 1
  batch = music.tokens(opening, 'soprano_first')
  return _written(model, batch, given, recipe, 'soprano_first', sampling)[:, 1:]


def opening_of(pieces: Pieces, rows: Int[np.ndarray, 'b'], num_steps: int) -> music.Score:
  """What Bach wrote: START and the first time steps."""
  shortest = int(pieces['num_steps'][rows].min())
  if num_steps > shortest:
    raise ValueError(f'The shortest of these pieces has {shortest} time steps; got num_steps={num_steps}.')
  whole = music.score({name: array[rows] for name, array in pieces.items()})
  return {name: array[:, : num_steps + 1] for name, array in whole.items()}


def _written(model, batch, given: int, recipe: MusicRecipe, order: music.Order, sampling) -> np.ndarray:
  ids, total = batch['ids'], batch['ids'].shape[1]
  window = LatentWindow(
    context_length=max(total, recipe.num_latents),
    num_latents=recipe.num_latents,
    num_start_latents=recipe.num_latents // 2,
  )
  new = generate(
    model,
    ids[:, :given],
    window=window,
    num_tokens=total - given,
    positions=batch['position'],
    allowed=MUSIC_ONLY,
    **sampling,
  )
  return music.grid_of(np.concatenate([ids[:, :given], new], axis=1), order)
