"""Notebook 03: probes of a flow model that nobody trained yet, and tables that leave nobody out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from perceiver_lib.data.loading import ArraySource, evaluation_batches
from perceiver_lib.experiments.tables import Table
from perceiver_lib.modalities.optical_flow import ReadFlow
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.parameters import abstract, count, filled
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.metrics import predict

_HEADINGS = {
  'epe': 'EPE (px)',
  'fl_all': 'off by 3 px and 5 % (%)',
  'angular_error': 'angle (°)',
  'percent_of_constant': '% of the best constant',
}


def flow_of(
  forward: Callable, model: PerceiverIO, frames: Num[np.ndarray, 'n 2 h w 3']
) -> Float[np.ndarray, 'n h w 2']:
  """Flow in pixels of many pairs of the size that the model was trained on, by a `ReadFlow` or a method of it."""
  return predict(model, forward, evaluation_batches(ArraySource({'frames': frames}), min(64, len(frames))))


def shapes(model: PerceiverIO, read: ReadFlow, frames: Num[np.ndarray, 'n 2 h w 3']) -> Table:
  """What each verb makes of some pairs, and how many parameters do it, beside the published model."""

  def arrays() -> tuple[jax.Array, ...]:
    tokens = read.inputs(frames)
    seen = read.seen(tokens, *frames.shape[2:4])
    return tokens.values, model.input_adapter(seen), model.encode(seen).values, model(seen, tokens)

  names = (
    'raw tokens: both frames, 3 x 3 neighbourhoods, RGB',
    'channels of the tokens that are read: values and Fourier features',
    'latents',
    'outputs: one vector per pixel',
  )
  rows = [['frames', str(frames.shape)]]
  rows += [[name, str(array.shape)] for name, array in zip(names, jax.eval_shape(arrays), strict=True)]
  published = count(abstract(PerceiverIO, PerceiverIOConfig.paper_flow()))
  return Table(['array', 'shape'], [*rows, ['parameters', f'{count(model):,}; the paper has {published:,}']])


def order_and_choice(
  model: PerceiverIO, read: ReadFlow, frames: Num[np.ndarray, 'n 2 h w 3'], num_pixels: int = 50
) -> tuple[float, float]:
  """What the order of the inputs and the company of other queries do to an output, for random weights.

  Returns:
    the largest change of an output when the input tokens are shuffled, and when only `num_pixels` are asked for.
  """
  model = filled(model, scale=0.1)  # Trained or not, an output of zero would hide a change.
  tokens = read.inputs(frames)
  order = jax.random.permutation(jax.random.key(1), tokens.num_tokens)
  some = order[:num_pixels]

  def rows(chosen: jax.Array) -> Tokens:
    return Tokens(values=tokens.values[:, chosen], position=tokens.position[:, chosen])

  answer = jax.jit(lambda inputs, queries: model(inputs, queries))
  whole, shuffled, alone = answer(tokens, tokens), answer(rows(order), tokens), answer(tokens, rows(some))
  return float(jnp.abs(shuffled - whole).max()), float(jnp.abs(alone - whole[:, some]).max())


def score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
  """Every method's `flow_metrics`, the least end-point error first; bands of true motion as columns of their own."""
  names = list(next(iter(scores.values())))
  bands = {name: 'EPE at {} to {} px'.format(*name.split('_')[1:]) for name in names if name not in _HEADINGS}
  rows = sorted(scores.items(), key=lambda item: item[1]['epe'])
  return Table(
    ['method', *((_HEADINGS | bands)[name] for name in names)],
    [[method, *(f'{score[name]:.2f}' for name in names)] for method, score in rows],
  )


def standing(value: float, baselines: Mapping[str, float], unit: str = 'px') -> str:
  """One sentence that says what the model beats and what beats it, the nearest first."""
  ordered = sorted(baselines.items(), key=lambda item: abs(item[1] - value))
  words = {
    side: ', '.join(f'{name} ({number:.2f})' for name, number in ordered if (number > value) == ahead) or 'nothing'
    for side, ahead in (('ahead of', True), ('behind', False))
  }
  return (
    f'Perceiver IO has {value:.2f} {unit}. It is ' + ' and '.join(f'{side} {who}' for side, who in words.items()) + '.'
  )
