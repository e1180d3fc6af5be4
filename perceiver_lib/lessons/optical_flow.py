"""How notebook 03 trains: Perceiver IO on photographs in motion, its ablations, and the methods it is held against.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.baselines.flow import best_constant, lucas_kanade, tv_l1
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data.optical_flow import FlowPairs
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.optical_flow import flow_from_outputs, flow_inputs
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.positions import FourierFeatures, grid
from perceiver_lib.queries import InputQueries, PositionQueries, position_queries
from perceiver_lib.scores.flow import end_point_error
from perceiver_lib.tokens import AnyArray, Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.optimizers import adamw_warmup_cosine

Arrays = Mapping[str, AnyArray]

OUTPUT_GAIN = 20.0
"""An output unit is 20 times the published 0.2 pixels: a head that starts at zero must reach 8 pixels in few steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowRecipe:
  """Settings of one profile. The recipe was chosen on validation photographs.

  Attributes:
    train_steps: of the main training, and ablation_steps of each of the short ones that compare variants.
    size: side of the training crops and of the tiles at test time, in pixels.
    num_latents, num_latent_channels, num_layers: of the model.
    num_bands: Fourier frequencies an axis.
    num_cross_heads: heads of the encoder's read (the paper: one).
    num_queries: pixels decoded a pair while training, drawn anew at every step; testing decodes all.
    max_severity: of the motion, in training and when tested: see `FlowPairs`. At 0.5 one shift for a whole crop leaves
      22 % of the motion unexplained, at 1 38 %; trained for minutes at 1, the small model stayed at 74 % of zero flow.
    ramp_fraction: share of the training over which one small shift grows into the motion of the test.
    held_out_pairs: validation pairs, and as many test pairs.
  """

  train_steps: int
  ablation_steps: int
  size: int = 32
  num_latents: int = 64
  num_latent_channels: int = 64
  num_layers: int = 4
  num_bands: int = 16
  num_cross_heads: int = 4
  num_queries: int = 64
  max_severity: float = 0.5
  ramp_fraction: float = 0.3
  held_out_pairs: int = 512
  batch_size: int = 16
  learning_rate: float = 2e-3


RECIPES = {
  'smoke': FlowRecipe(
    train_steps=4, ablation_steps=2, size=16, num_latents=4, num_latent_channels=16, num_layers=1, num_bands=4,
    held_out_pairs=8, batch_size=4, num_cross_heads=2,
  ),
  'demo': FlowRecipe(train_steps=3_000, ablation_steps=300, held_out_pairs=256),
  'full': FlowRecipe(
    train_steps=100_000, ablation_steps=20_000, num_latents=256, num_latent_channels=256, num_layers=12,
    num_queries=1_024, batch_size=64, learning_rate=1e-3, max_severity=1.0,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ReadFlow:
  """Runs a Perceiver IO on pairs of frames: the published way, or one of two ablations.

  Attributes:
    concatenate_frames: True = a token a pixel holds both frames; False = a token a pixel and frame.
    ask_by_position: True = the decoder is asked by position alone; False = by the input features of the pixel.
    stride: latents read every `stride`-th row and column. At 2 the 3 x 3 neighbourhoods still hold every pixel, for a
      quarter of the read; any pixel can be asked for.
  """

  concatenate_frames: bool = True
  ask_by_position: bool = False
  stride: int = 2

  def inputs(self, frames: Num[AnyArray, 'b 2 h w 3']) -> Tokens:
    """Neighbourhoods with their place in [-1, 1], and their frame as a first coordinate where frames are separate."""
    height, width = frames.shape[2:4]
    shape = (height, width) if self.concatenate_frames else (2, height, width)
    values = flow_inputs(standardised(frames), concatenate_frames=self.concatenate_frames)
    return Tokens(values=values, position=jnp.asarray(grid(shape))[None])

  def seen(self, inputs: Tokens, height: int, width: int) -> Tokens:
    """The tokens that the latents read."""
    rows = np.arange(inputs.num_tokens).reshape(-1, height, width)
    rows = rows[:, self.stride - 1 :: self.stride, self.stride - 1 :: self.stride].reshape(-1)
    return Tokens(values=inputs.values[:, rows], position=inputs.position[:, rows])

  def queries(self, inputs: Tokens, num_pixels: int, rows: Int[Array, 'o'] | None = None) -> Tokens:
    """What to ask for all pixels of frame 1, or for some `rows` of them."""
    rows = jnp.arange(num_pixels) if rows is None else rows
    if self.ask_by_position:
      return position_queries(inputs.position[:, rows], batch_size=inputs.batch_size)
    return Tokens(values=inputs.values[:, rows], position=inputs.position[:, rows])

  def outputs(self, model: PerceiverIO, frames: Num[AnyArray, 'b 2 h w 3'], rows: Int[Array, 'o'] | None = None):
    """Raw outputs `[b, o, 2]`, in units of `OUTPUT_GAIN` times the published ones."""
    inputs, (height, width) = self.inputs(frames), frames.shape[2:4]
    return model(self.seen(inputs, height, width), self.queries(inputs, height * width, rows))

  def __call__(self, model: PerceiverIO, frames: Num[AnyArray, 'b 2 h w 3']) -> Float[Array, 'b h w 2']:
    """Flow in pixels, of every pixel of frame 1."""
    return flow_from_outputs(OUTPUT_GAIN * self.outputs(model, frames), *frames.shape[2:4])


def standardised(frames: Num[AnyArray, 'b 2 h w 3']) -> Float[Array, 'b 2 h w 3']:
  """Frames in 0..255 without the mean and contrast of their pair: grey 127.5, and as much for a standard deviation."""
  frames = jnp.asarray(frames).astype(jnp.float32)
  mean, spread = (statistic(frames, axis=(1, 2, 3, 4), keepdims=True) for statistic in (jnp.mean, jnp.std))
  return (frames - mean) / (spread + 4) * 127.5 + 127.5


def flow_config(recipe: FlowRecipe, read: ReadFlow = ReadFlow(), size: int | None = None) -> PerceiverIOConfig:
  """The published model at the recipe's size, with the inputs and queries of `read`."""
  size = size or recipe.size
  config = PerceiverIOConfig.optical_flow(
    image_shape=(size, size),
    num_latents=recipe.num_latents,
    num_latent_channels=recipe.num_latent_channels,
    num_self_attends=recipe.num_layers,
    num_heads=4,
    num_bands=recipe.num_bands,
  )
  axes = (size, size) if read.concatenate_frames else (2, size, size)
  position = FourierFeatures(num_bands=recipe.num_bands, max_resolution=axes)
  width = recipe.num_latent_channels
  return dataclasses.replace(
    config,
    input_adapter=FeatureAdapterConfig(
      num_values=54 if read.concatenate_frames else 27, num_projected_channels=64, position=position
    ),
    cross_attend=LayerConfig(num_heads=recipe.num_cross_heads, qk_channels=width),
    decoder=DecoderConfig(
      queries=PositionQueries(position=position) if read.ask_by_position else InputQueries(),
      num_outputs=2,
      output='zeros',
      cross_attend=LayerConfig(num_heads=1, qk_channels=width, query_residual=False),
    ),
  )


def flow_model(recipe: FlowRecipe, read: ReadFlow = ReadFlow(), *, seed: int) -> PerceiverIO:
  """The model of `flow_config`, untrained."""
  return PerceiverIO(flow_config(recipe, read), rngs=nnx.Rngs(seed))


def flow_loss(read: ReadFlow, num_queries: int) -> Callable:
  """Mean end-point error in pixels of `num_queries` pixels of every pair, drawn at every step."""

  def loss_fn(model: nnx.Module, batch: Arrays, rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
    frames, flow = batch['frames'], rearrange(batch['flow'], 'b h w e -> b (h w) e')
    rows = jax.random.permutation(rngs.dropout(), flow.shape[1])[:num_queries]
    predicted = OUTPUT_GAIN * read.outputs(model, frames, rows)
    predicted = flow_from_outputs(predicted, 1, len(rows))[:, 0]
    truth = flow[:, rows]
    loss = end_point_error(predicted, truth).mean()
    return loss, {'epe_of_zero_flow': end_point_error(jnp.zeros_like(truth), truth).mean()}

  return loss_fn


@functools.lru_cache(maxsize=32)
def _predictor(read: ReadFlow) -> Callable[[nnx.Module, Array], Array]:
  return jax.jit(lambda model, frames: read(model, frames))


def predicted_flow(
  read: ReadFlow, model: nnx.Module, frames: Num[AnyArray, 'n 2 h w 3'], batch_size: int = 64
) -> Float[np.ndarray, 'n h w 2']:
  """Flow in pixels of many pairs of the size that the model was trained on."""
  predict = _predictor(read)
  parts = [np.asarray(predict(model, frames[i : i + batch_size])) for i in range(0, len(frames), batch_size)]
  return np.concatenate(parts)


def mean_error(read: ReadFlow, model: nnx.Module, pairs: Arrays) -> float:
  """End-point error in pixels over all pixels, also those that are occluded."""
  return float(end_point_error(predicted_flow(read, model, pairs['frames']), pairs['flow']).mean())


def train_flow(
  model: nnx.Module,
  read: ReadFlow,
  train: FlowPairs,
  validation: Arrays,
  *,
  recipe: FlowRecipe,
  num_steps: int,
  seed: int,
  evaluations: int = 1,
  **fit_settings: Any,
) -> FitResult:
  """AdamW with warm-up and a cosine, a moving average of the weights, and motion that grows over the first steps.

  Args:
    train: its ramp is set here, to `recipe.ramp_fraction` of this training.
    validation: 'frames' and 'flow', looked at `evaluations` times on the way and once at the end.
  """
  ramp = int(recipe.ramp_fraction * num_steps) * recipe.batch_size
  train = dataclasses.replace(train, ramp=ramp)
  return fit(
    model,
    flow_loss(read, min(recipe.num_queries, train.size**2)),
    lambda step: train.batches(recipe.batch_size, start_step=step),
    optimizer=adamw_warmup_cosine(recipe.learning_rate, num_steps, warmup_steps=min(100, num_steps // 8)),
    num_steps=num_steps,
    seed=seed,
    evaluate=lambda trained: {'validation_epe': mean_error(read, trained, validation)},
    evaluations=evaluations,
    ema_decay=0.99,
    **fit_settings,
  )


def flow_baselines(
  frames: Num[np.ndarray, 'n 2 h w 3'],
  truth: Float[np.ndarray, 'n h w 2'],
  train_flow: Float[np.ndarray, '*shape 2'],
  valid: np.ndarray | None = None,
) -> dict[str, Float[np.ndarray, 'n h w 2']]:
  """Flows of what needs no training, by name; the best constant has seen the answers."""
  constants = {
    'zero flow': np.zeros(2, np.float32),
    'mean flow of training': np.asarray(train_flow, np.float32).reshape(-1, 2).mean(0),
    'best constant': best_constant(truth, valid),
  }
  classical = {'TV-L1': tv_l1, 'iterative Lucas-Kanade': lucas_kanade}
  flows = {name: np.broadcast_to(constant, truth.shape) for name, constant in constants.items()}
  return flows | {name: np.stack([method(pair) for pair in frames]) for name, method in classical.items()}
