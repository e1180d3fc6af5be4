"""What the models of other programs are given and answer, and the same of these models; no other program is needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from perceiver_lib.modalities.multimodal import autoencoding_inputs, autoencoding_queries
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.positions import grid
from perceiver_lib.queries import position_queries
from perceiver_lib.tokens import Tokens

Inputs = Mapping[str, np.ndarray]
Answer = dict[str, Any]


def draw(name: str, shape: tuple[int, ...], random: np.random.Generator, *, small: bool) -> np.ndarray:
  """Random weights with which every part of a model matters to its outputs.

  Args:
    small: exact in float16 and on a grid so coarse that a compressed file of them is small.
  """
  noise = random.standard_normal(shape)
  if name.endswith('num_batches_tracked'):
    return np.zeros(shape, np.int64)
  if name.endswith('running_var'):
    return np.float32(1) + np.abs(np.round(8 * noise) / 8).astype(np.float32)
  is_norm = any(part in name for part in ('norm', '.1.module.0.')) and name.endswith('weight')
  fan_in = math.prod(shape[1:]) if len(shape) > 1 and 'embeddings' not in name else 1
  scale = fan_in**-0.5 if fan_in > 1 else 0.3
  if not small:
    return (is_norm + scale * noise).astype(np.float32)
  power = 2.0 ** round(math.log2(scale))
  grid_step = power if noise.size > 20_000 else power / 8
  return (is_norm + grid_step * np.round(power / grid_step * noise)).astype(np.float32)


def tokens_of(kind: str, inputs: Inputs) -> tuple[Any, Any]:
  """The inputs of a Perceiver IO, and its queries, None = the model's own."""
  arrays = {name: jnp.asarray(array) for name, array in inputs.items()}
  if kind in ('language', 'text'):
    position = jnp.arange(arrays['ids'].shape[1])[None, :, None]
    return Tokens(values=arrays['ids'], position=position, valid=arrays['valid']), None
  if kind in ('fourier', 'learned'):
    return pixel_tokens(arrays['image'], integer_positions=kind == 'learned'), None
  if kind == 'convolution':
    return Tokens(values=rearrange(arrays['image'], 'b y x c -> b (y x) c')), None
  if kind == 'flow':
    position = jnp.asarray(grid(arrays['frames'].shape[2:4]))[None]
    return Tokens(values=rearrange(arrays['frames'], 'b t y x c -> b (y x) (t c)'), position=position), None
  read = autoencoding_inputs(arrays['image'], arrays['audio'], num_labels=inputs['label'].shape[-1])
  asked = autoencoding_queries(
    len(inputs['image']), video_shape=inputs['image'].shape[1:4], num_patches=read['audio'].num_tokens
  )
  # The last bit of a place is 3e-3 of the top band's angle, so those of the sound are rounded as in the other program.
  read['audio'] = dataclasses.replace(read['audio'], position=arrays['audio_read_at'][None])
  points = inputs['audio_points'].astype(np.float32)
  asked['audio'] = position_queries(
    (2 * points / np.float32(len(inputs['audio_read_at'])) - 1)[:, None], batch_size=len(inputs['image'])
  )
  asked['image'] = jax.tree.map(lambda leaf: leaf[:, inputs['image_points']], asked['image'])
  return read, asked


def answer_of_io(model: PerceiverIO, kind: str, inputs: Inputs) -> Answer:
  """Latents after the read and after every layer, one below the other, and the outputs in the other program's shape."""
  tokens, queries = tokens_of(kind, inputs)
  read = tokens if model.preprocessor is None else model.preprocessor(tokens)
  first = read if isinstance(read, Tokens) else read['label']
  values = jnp.broadcast_to(model.latents[...], (first.batch_size, *model.latents.shape))
  latents = model.cross_attends[0](Tokens(values=values), read, model.input_adapter)
  layers = [latents.values]
  for _ in range(model.config.num_blocks):
    for layer in model.blocks[0].layers:
      latents = layer(latents)
      layers.append(latents.values)
  queries = model.decoder.default_queries(tokens, first.batch_size) if queries is None else queries
  outputs = model.decode(latents, queries)
  if kind == 'flow':
    outputs = rearrange(outputs, 'b (y x) e -> b y x e', y=inputs['frames'].shape[2]) / 100
  elif kind == 'multimodal':
    outputs['audio'] = rearrange(outputs['audio'], 'b o e -> b (o e)')
    outputs['label'] = outputs['label'][:, 0]
  elif kind not in ('language',):
    outputs = outputs[:, 0]
  answer = (
    {f'outputs.{name}': array for name, array in outputs.items()} if kind == 'multimodal' else {'outputs': outputs}
  )
  return {'layers': jnp.stack(layers), **answer}


def answer_of_ar(model: PerceiverAR, inputs: Inputs) -> Answer:
  """Logits of every latent that sits on a valid input; the others are zero."""
  tokens = Tokens(values=jnp.asarray(inputs['ids']), valid=jnp.asarray(inputs['valid']))
  logits = model(tokens)
  return {'outputs': jnp.where(logits.valid[..., None], logits.values, 0.0)}


def answer(model: PerceiverIO | PerceiverAR, kind: str, inputs: Inputs) -> Answer:
  return answer_of_ar(model, inputs) if kind == 'ar' else answer_of_io(model, kind, inputs)


def relative_error(ours: Any, theirs: np.ndarray) -> float:
  """The largest difference over the largest magnitude."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
