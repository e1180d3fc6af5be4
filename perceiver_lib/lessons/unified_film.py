"""How notebook 08 predicts a film: a timestep brings a whole frame and its sound as bytes; asked for is the next frame.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.baselines.video import FIRST_PREDICTED, FramePSNR, frame_psnr, squared_errors
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data.film import FRAMES_PER_SECOND, SAMPLES_PER_SECOND, Clips
from perceiver_lib.data.loading import ArraySource, stack, training_batches
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.audio import PATCH_SAMPLES, audio_tokens
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.modalities.video import video_from_patches, video_patches, video_tokens
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.plots import theme
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.optimizers import muon_and_adam

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilmRecipe:
  """Settings of one profile, chosen on the validation clips.

  Attributes:
    scale: pixels are means of squares of so many pixels a side.
    num_timesteps: frames that a clip brings; it has one more, which is only predicted.
    patch_size: rows and columns of the blocks that are tokens.
    stride: frames between the starts of training clips.
    num_held_out: most clips of validation and test, None = all.
  """

  train_steps: int
  scale: int = 2
  num_timesteps: int = 5
  patch_size: int = 4
  stride: int = 2
  num_latents: int = 16
  num_latent_channels: int = 96
  num_layers: int = 2
  batch_size: int = 8
  learning_rate: float = 2e-3
  matrix_learning_rate: float = 0.02
  num_held_out: int | None = None


RECIPES = {
  'smoke': FilmRecipe(
    train_steps=3, scale=8, patch_size=2, num_timesteps=3, stride=60, num_latents=2, num_latent_channels=16,
    num_layers=1, batch_size=2, num_held_out=4
  ),
  'demo': FilmRecipe(train_steps=250),
  'full': FilmRecipe(
    train_steps=30_000, scale=1, num_timesteps=8, stride=1, num_latents=64, num_latent_channels=256, num_layers=6,
    batch_size=32
  ),
}  # fmt: skip

BYTE = 2 / 255
_MOTION_GAIN = 4.0
"""Differences of frames are small beside the frames."""


def film_config(recipe: FilmRecipe, frame_shape: tuple[int, int, int]) -> UnifiedPerceiverConfig:
  """Tokens are blocks of pixels and runs of samples; a query is a block of the newest frame and how it changed."""
  height, width, colours = frame_shape
  p, t = recipe.patch_size, recipe.num_timesteps
  cells, num_values = (t, height // p, width // p), p * p * colours
  position = FourierFeatures(num_bands=6, max_resolution=cells)
  sound = FourierFeatures(num_bands=16, max_resolution=(t * SAMPLES_PER_SECOND // FRAMES_PER_SECOND // PATCH_SAMPLES,))
  video = FeatureAdapterConfig(
    num_values=num_values, scale=BYTE, shift=-1.0, num_projected_channels=48, position=position
  )
  audio = FeatureAdapterConfig(num_values=PATCH_SAMPLES, scale=2.0, position=sound)
  queries = FeatureAdapterConfig(num_values=2 * num_values, num_projected_channels=64, position=position)
  return UnifiedPerceiverConfig(
    input_adapter=ModalityAdaptersConfig(
      modalities=(('audio', audio), ('video', video)), num_channels=video.num_channels + 5
    ),
    latents=LearnedLatents(num_latents=recipe.num_latents, num_timesteps=t, encoder_window=1),
    num_latent_channels=recipe.num_latent_channels,
    num_self_attends_per_block=recipe.num_layers,
    cross_attend=LayerConfig(num_heads=4, qk_channels=64, v_channels=96),
    self_attend=LayerConfig(num_heads=4),
    decoder=DecoderConfig(
      queries=queries,
      num_outputs=num_values,
      output='zeros',
      cross_attend=LayerConfig(num_heads=4, qk_channels=64, widening_factor=2),
    ),
  )


def film_tokens(frames: Array, samples: Array, patch_size: int) -> dict[str, Tokens]:
  """Blocks and sound with the timestep that brings them. Sound of later timesteps is there, and nobody reads it."""
  usable = samples.shape[1] // PATCH_SAMPLES * PATCH_SAMPLES
  rates = (float(SAMPLES_PER_SECOND), float(FRAMES_PER_SECOND))
  return {
    'audio': audio_tokens(samples[:, :usable], rates=rates),
    'video': video_tokens(frames, (1, patch_size, patch_size), timed=True),
  }


def block_queries(frames: Array, patch_size: int) -> Tokens:
  """One query a block and timestep: the block as it is, in [-1, 1], and four times its change since the last frame."""
  patch = (1, patch_size, patch_size)
  tokens = video_tokens(frames, patch, timed=True)
  scaled = frames.astype(jnp.float32) * BYTE - 1
  change = jnp.concatenate([jnp.zeros_like(scaled[:, :1]), scaled[:, 1:] - scaled[:, :-1]], axis=1)
  values = [video_patches(array, patch) for array in (scaled, _MOTION_GAIN * change)]
  return dataclasses.replace(tokens, values=jnp.concatenate(values, axis=-1))


def predicted_frames(
  model: UnifiedPerceiver, frames: Array, samples: Array, patch_size: int, rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t y x c']:
  """The frame after each of the given ones, in bytes but not rounded: the last frame plus what the model adds."""
  t, *shape = frames.shape[1:]
  queries = block_queries(frames, patch_size)
  outputs = model(film_tokens(frames, samples, patch_size), queries, num_timesteps=t, rngs=rngs)
  added = video_from_patches(outputs, (t, *shape), (1, patch_size, patch_size))
  return frames.astype(jnp.float32) + added / BYTE


def film_loss(patch_size: int) -> Any:
  """Mean squared error of the next frame in units of [-1, 1], without frames behind a cut, which no past tells."""

  def loss_fn(model: nnx.Module, batch: Mapping[str, Any], rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
    frames = jnp.asarray(batch['frames'])
    predicted = predicted_frames(model, frames[:, :-1], jnp.asarray(batch['samples']), patch_size, rngs)
    errors = jnp.mean(jnp.square((predicted - frames[:, 1:].astype(jnp.float32)) * BYTE), axis=(2, 3, 4))
    within = ~jnp.asarray(batch['cuts'])[:, 1:]
    return jnp.sum(jnp.where(within, errors, 0.0)) / jnp.maximum(jnp.sum(within, dtype=jnp.float32), 1.0), {}

  return loss_fn


def held_out(clips: Clips, recipe: FilmRecipe) -> Clips:
  """The first clips of a split, as many as the recipe looks at."""
  return Clips(clips.film, clips.starts[: recipe.num_held_out], clips.num_frames)


def train_predictor(
  model: UnifiedPerceiver, train: Clips, validation: Clips, *, recipe: FilmRecipe, seed: int, **fit_settings: Any
) -> FitResult:
  """Muon and Adam, and a moving average of the weights; validation PSNR at the end."""
  source = ArraySource({name: array for name, array in stack(train).items() if name != 'start'})
  num_steps = recipe.train_steps
  return fit(
    model,
    film_loss(recipe.patch_size),
    lambda step: training_batches(source, recipe.batch_size, seed=seed, start_step=step),
    optimizer=muon_and_adam(
      num_steps, learning_rate=recipe.learning_rate, matrix_learning_rate=recipe.matrix_learning_rate
    ),
    num_steps=num_steps,
    seed=seed,
    evaluate=lambda trained: {'validation_psnr': film_psnr(trained, validation, recipe).within_shots},
    ema_decay=0.99,
    **fit_settings,
  )


def predict_clips(
  model: UnifiedPerceiver, clips: Clips, recipe: FilmRecipe, *, mute: bool = False, batch_size: int = 16
) -> UInt8[np.ndarray, 'n t y x c']:
  """Rounded predictions of frames 1, 2, ... of every clip; `mute` takes the sound away."""
  examples = stack(clips)
  samples = np.zeros_like(examples['samples']) if mute else examples['samples']
  predict = jax.jit(
    lambda model, frames, samples: jnp.clip(
      jnp.round(predicted_frames(model, frames, samples, recipe.patch_size)), 0, 255
    ).astype(jnp.uint8)
  )
  padded = np.minimum(np.arange(-(-len(samples) // batch_size) * batch_size), len(samples) - 1)
  parts = [
    np.asarray(predict(model, examples['frames'][rows, :-1], samples[rows])) for rows in padded.reshape(-1, batch_size)
  ]
  return np.concatenate(parts)[: len(samples)]


def film_psnr(model: UnifiedPerceiver, clips: Clips, recipe: FilmRecipe, *, mute: bool = False) -> FramePSNR:
  """Of the frames that `video_baselines` predicts too: each clip's third and those after it."""
  examples, predicted = stack(clips), predict_clips(model, clips, recipe, mute=mute)
  errors = [
    squared_errors(said[FIRST_PREDICTED - 1 :], truth[FIRST_PREDICTED:])
    for said, truth in zip(predicted, examples['frames'], strict=True)
  ]
  return frame_psnr(np.concatenate(errors), np.concatenate(examples['cuts'][:, FIRST_PREDICTED:]))


def softened_copy_psnr(clips: Clips, strength: float) -> FramePSNR:
  """Of copying the last frame with so much of it blurred by 1 2 1 both ways: what caution alone gains."""
  examples = stack(clips)
  last = examples['frames'][:, FIRST_PREDICTED - 1 : -1].astype(np.float32)
  padded = np.pad(last, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
  blurred = (rows[:, :, :, :-2] + 2 * rows[:, :, :, 1:-1] + rows[:, :, :, 2:]) / 4
  said = np.rint(last + strength * (blurred - last)).astype(np.uint8)
  truth, cuts = examples['frames'][:, FIRST_PREDICTED:], examples['cuts'][:, FIRST_PREDICTED:]
  errors = [squared_errors(*pair) for pair in zip(said, truth, strict=True)]
  return frame_psnr(np.concatenate(errors), np.concatenate(cuts))


def lively_clip(clips: Clips) -> Clips:
  """A clip without a cut whose last frame differs from the one before by more than in three quarters of all clips."""
  examples = stack(clips)
  last, before = (examples['frames'][:, index].astype(np.float32) for index in (-1, -2))
  change = np.where(examples['cuts'].any(1), -1.0, np.square(last - before).mean((1, 2, 3)))
  return Clips(clips.film, clips.starts[[int(np.argsort(change)[3 * len(change) // 4])]], clips.num_frames)


def film_figure(frames: UInt8[np.ndarray, 't y x c'], predicted: UInt8[np.ndarray, 'u y x c'], *, title: str) -> Figure:
  """The last frames of a clip, the error of copying, what was predicted, and its error, both on one scale."""
  last, truth, said = frames[-2].astype(np.float32), frames[-1].astype(np.float32), predicted[-1].astype(np.float32)
  errors = [np.abs(image - truth).mean(-1) for image in (last, said)]
  with theme.use_theme():
    figure = theme.new_figure(3.3, title=title)
    grid = figure.subplots(2, 3)
    pictures = (('last frame', frames[-2]), ('next frame', frames[-1]), ('predicted', predicted[-1]))
    for axes, (name, picture) in zip(grid[0], pictures, strict=True):
      axes.imshow(picture)
      axes.set_title(name)
    grid[1, 1].set_visible(False)
    for axes, name, error in zip((grid[1, 0], grid[1, 2]), ('copy', 'prediction'), errors, strict=True):
      drawn = axes.imshow(error, cmap=theme.SEQUENTIAL, vmin=0, vmax=max(map(np.max, errors)))
      axes.set_title(f'error of the {name}, mean {error.mean():.2f}')
    for axes in grid.ravel():
      theme.hide_ticks(axes)
    figure.colorbar(drawn, ax=grid[1, 2], label='mean |error| (bytes)', aspect=12)
  return theme.describe(figure, f'{title}. Mean error {errors[0].mean():.2f} of the copy, {errors[1].mean():.2f} here.')
