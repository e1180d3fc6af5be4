"""How notebook 09 makes models whose attention is worth seeing: five small trainings, each under a minute on two cores.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook. What is
measured on the maps is in `attention_probes`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.attention.capture import AttentionMap, capture_attention
from perceiver_lib.attention.rollout import attention_rollout
from perceiver_lib.data import pronunciation
from perceiver_lib.data.loading import ArraySource, evaluation_batches
from perceiver_lib.data.optical_flow import FlowPairs
from perceiver_lib.lessons import attention_probes, images, mirrored_copy, sentences
from perceiver_lib.lessons import unified_pronunciation as speech
from perceiver_lib.modalities.optical_flow import ReadFlow
from perceiver_lib.modalities.pixels import pixel_adapter
from perceiver_lib.models.perceiver import Perceiver
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.scores.flow import end_point_error
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.metrics import predict
from perceiver_lib.training.optimizers import muon_and_adam

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowRecipe:
  """A small model of flow; attributes as the sizes of notebook 03."""

  train_steps: int
  size: int = 32
  num_latents: int = 32
  num_latent_channels: int = 64
  num_layers: int = 2
  num_bands: int = 16
  num_cross_heads: int = 4
  num_queries: int = 64
  held_out_pairs: int = 256
  batch_size: int = 16
  learning_rate: float = 2e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionRecipe:
  """Settings of one profile.

  Attributes:
    images, text, flow, copy, words: of the five trainings, with small settings of the notebooks that own the tasks.
    image_steps: of each of the two image models, with `num_reads` reads.
    snapshots: maps that are kept while the copying model trains.
    num_examples: over which a number is a mean.
    log2_bytes: of the long input.
  """

  images: images.ImageRecipe
  image_steps: int
  text: sentences.SentenceRecipe
  flow: FlowRecipe
  copy: mirrored_copy.CopyRecipe
  words: speech.PronunciationRecipe
  num_reads: int = 3
  snapshots: int = 9
  num_examples: int = 64
  log2_bytes: int = 18


RECIPES = {
  'smoke': AttentionRecipe(
    images=dataclasses.replace(images.RECIPES['smoke'], batch_size=8),
    image_steps=3,
    text=sentences.SentenceRecipe(
      train_steps=3, length=24, num_latents=4, num_latent_channels=16, num_heads=2, num_channels=16, batch_size=4
    ),
    flow=FlowRecipe(
      train_steps=3, size=16, num_latents=4, num_latent_channels=16, num_layers=1, num_bands=4, num_cross_heads=2,
      held_out_pairs=8, batch_size=4,
    ),
    copy=mirrored_copy.CopyRecipe(
      ladder=(mirrored_copy.Rung(length=16, num_latents=4, batch_size=4, num_steps=4),),
      windowed_rung=0, window=4, width=16,
    ),
    words=dataclasses.replace(speech.RECIPES['smoke'], train_steps=3),
    snapshots=2, num_examples=8, log2_bytes=14,
  ),
  'demo': AttentionRecipe(
    images=dataclasses.replace(images.RECIPES['demo'], num_latents=16, batch_size=16),
    image_steps=500,
    text=sentences.SentenceRecipe(train_steps=800, num_latents=32),
    flow=FlowRecipe(train_steps=700),
    copy=mirrored_copy.CopyRecipe(
      ladder=(mirrored_copy.Rung(length=64, num_latents=16, batch_size=32, num_steps=450),),
      windowed_rung=0, window=16,
    ),
    words=dataclasses.replace(
      speech.RECIPES['demo'], train_steps=500, num_latent_channels=64, num_layers=2, batch_size=32
    ),
  ),
  'full': AttentionRecipe(
    images=dataclasses.replace(images.RECIPES['full'], num_latents=64),
    image_steps=20_000,
    text=sentences.SentenceRecipe(
      train_steps=50_000, length=256, num_latents=64, num_latent_channels=256, num_layers=6, num_channels=256,
      batch_size=128, learning_rate=1e-3,
    ),
    flow=FlowRecipe(
      train_steps=30_000, num_latents=256, num_latent_channels=256, num_layers=12, num_queries=1_024,
      held_out_pairs=512, batch_size=64, learning_rate=1e-3,
    ),
    copy=mirrored_copy.CopyRecipe(
      ladder=(mirrored_copy.Rung(length=128, num_latents=32, batch_size=64, num_steps=5_000),),
      windowed_rung=0, window=16,
    ),
    words=dataclasses.replace(speech.RECIPES['full'], train_steps=20_000),
    num_reads=8, num_examples=256, log2_bytes=20,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Looked:
  """A call with its maps.

  Attributes:
    output, maps: as `capture_attention` returns them.
    rollout: from the last queries through the latents to the inputs.
    difference: from the output of the same call without maps, over its largest value, or None if not compared.
  """

  output: Any
  maps: dict[str, AttentionMap]
  rollout: Float[Array, 'b i m']
  difference: float | None


def look(call: Callable[..., Any], *args: Any, compare: bool = False) -> Looked:
  """Calls a function of arrays and models with every map captured, compiled; `compare` calls it as it is, too."""
  output, maps, rollout = _with_maps(call)(*args)
  difference = None
  if compare:
    plain = jax.jit(call)(*args)
    values = [found.values if isinstance(found, Tokens) else found for found in (plain, output)]
    difference = float(jnp.max(jnp.abs(values[0] - values[1])) / jnp.max(jnp.abs(values[0])))
  return Looked(output, maps, rollout, difference)


@functools.lru_cache(maxsize=32)
def _with_maps(call: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, AttentionMap], Array]]:
  def with_maps(*args: Any) -> tuple[Any, dict[str, AttentionMap], Array]:
    output, maps = capture_attention(call)(*args)
    latent_inputs = output.time if isinstance(output, Tokens) else None
    return output, maps, attention_rollout(maps, latent_inputs=latent_inputs)

  return jax.jit(with_maps)


# Images.


def image_reader(
  recipe: AttentionRecipe, positions: str, image_shape: tuple[int, int, int], num_classes: int, *, seed: int
) -> tuple[Perceiver, images.ReadPixels]:
  """A Perceiver with a read before each of its latent blocks, and how it takes images.

  Args:
    positions: 'Fourier' features or a 'learned' table of as many channels.
  """
  depth = {'num_blocks': recipe.num_reads, 'num_cross_attends': recipe.num_reads, 'num_self_attends_per_block': 1}
  config = images.image_perceiver(recipe.images, image_shape, num_classes, **depth)
  if positions == 'learned':
    width = config.input_adapter.num_channels - config.input_adapter.num_values
    adapter = pixel_adapter(image_shape, num_position_channels=width)
    config = dataclasses.replace(config, input_adapter=adapter)
  return Perceiver(config, rngs=nnx.Rngs(seed)), images.ReadPixels(integer_positions=positions == 'learned')


# Optical flow.


@functools.partial(jax.jit, static_argnames='size')
def side_by_side(frames: Array, flow: Array, *, size: int) -> dict[str, Array]:
  """The left half of every pair of the first half of a batch beside the right half of one of the second."""
  half, middle = len(frames) // 2, size // 2
  return {
    name: jnp.concatenate([array[:half, ..., :middle, :], array[half:, ..., middle:, :]], axis=-2)
    for name, array in (('frames', frames), ('flow', flow))
  }


def two_motions(pairs: FlowPairs, batch_size: int, start_step: int = 0) -> Iterator[dict[str, Array]]:
  """Frames whose left and right half come from two photographs, each shifted by up to 4 pixels in its own direction."""
  shifts = dataclasses.replace(pairs, max_severity=0.0)  # shifts and nothing else
  for step in itertools.count(start_step):
    batch = shifts.batch(2 * step * batch_size, 2 * batch_size)
    yield side_by_side(batch['frames'], batch['flow'], size=pairs.size)


def flow_model(recipe: FlowRecipe, *, seed: int) -> PerceiverIO:
  """Notebook 03's model, untrained."""
  config = PerceiverIOConfig.optical_flow(
    image_shape=(recipe.size, recipe.size),
    num_latents=recipe.num_latents,
    num_latent_channels=recipe.num_latent_channels,
    num_self_attends=recipe.num_layers,
    num_heads=4,
    num_cross_heads=recipe.num_cross_heads,
    qk_channels=recipe.num_latent_channels,
    num_bands=recipe.num_bands,
  )
  return PerceiverIO(config, rngs=nnx.Rngs(seed))


def train_two_motions(
  model: PerceiverIO,
  read: ReadFlow,
  pairs: FlowPairs,
  validation: Arrays,
  *,
  recipe: FlowRecipe,
  seed: int,
  **fit_settings: Any,
) -> FitResult:
  """Notebook 03's model and loss on `two_motions`."""
  num_steps = recipe.train_steps

  def loss(model: nnx.Module, batch: Arrays, rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
    truth = rearrange(batch['flow'], 'b h w e -> b (h w) e')
    rows = jax.random.permutation(rngs.dropout(), truth.shape[1])[: recipe.num_queries]
    return end_point_error(read.at(model, batch['frames'], rows), truth[:, rows]).mean(), {}

  def validation_error(trained: nnx.Module) -> dict[str, float]:
    flow = predict(trained, read, evaluation_batches(ArraySource(validation), min(64, len(validation['frames']))))
    return {'validation_epe': float(end_point_error(flow, validation['flow']).mean())}

  return fit(
    model,
    loss,
    lambda step: two_motions(pairs, recipe.batch_size, step),
    optimizer=muon_and_adam(num_steps, learning_rate=recipe.learning_rate, matrix_learning_rate=0.02),
    num_steps=num_steps,
    seed=seed,
    evaluate=validation_error,
    ema_decay=0.99,
    **fit_settings,
  )


# Copying.


def copy_inputs(rung: mirrored_copy.Rung, count: int, seed: int) -> Tokens:
  """New sequences of the copy task, all but their last token."""
  batch = mirrored_copy.copy_batch(rung.length, count, seed + 2_000_003, 0)
  return mirrored_copy.copy_examples(jnp.asarray(batch['ids']), jnp.asarray(batch['position'])).inputs


def copied(model: PerceiverAR, inputs: Tokens) -> Tokens:
  """The call that all maps of copying are taken of: a latent on each token of the second half."""
  return model(inputs, num_latents=inputs.num_tokens // 2)


def train_copier(recipe: AttentionRecipe, *, seed: int, **fit_settings: Any) -> FitResult:
  """`mirrored_copy.climb` on its first rung; at each snapshot the history keeps the read of one sequence.

  Its records hold 'map' [h, n, m] and 'lookup', the best head's `attention_probes.lookup_mass` over all sequences.
  """
  rung = recipe.copy.ladder[0]
  inputs = copy_inputs(rung, recipe.num_examples, seed)
  read = jax.jit(capture_attention(copied, names=['encoder']))

  def snapshot(model: PerceiverAR) -> dict[str, Any]:
    output, maps = read(model, inputs)
    weights = np.asarray(maps['encoder.cross_attention.0'].weights)
    lookup = attention_probes.lookup_mass(weights, np.asarray(output.time), rung.length)
    return {'lookup': lookup.max(), 'map': weights[0].astype(np.float16)}

  model = mirrored_copy.copy_model(recipe.copy, seed)
  return mirrored_copy.climb(
    model, rung, recipe.copy, seed, evaluate=snapshot, evaluations=recipe.snapshots, **fit_settings
  )


# Words.


def letter_by_letter(source: pronunciation.WordSource, count: int) -> pronunciation.WordSource:
  """The first words of five to ten letters that have a phoneme for each letter: most are aligned one to one."""
  num_phonemes = (source.arrays['phonemes'] >= pronunciation.FIRST_PHONEME).sum(1)
  num_letters = (source.arrays['letters'] != pronunciation.PAD).sum(1)
  [rows] = np.nonzero((num_letters == num_phonemes) & (num_letters >= 5) & (num_letters <= 10))
  rows = rows[:: max(1, len(rows) // count)][:count]
  arrays = {name: array[rows] for name, array in source.arrays.items()}
  return pronunciation.WordSource(arrays, [source.words[row] for row in rows], [source.variants[row] for row in rows])
