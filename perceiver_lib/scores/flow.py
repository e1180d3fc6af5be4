"""How good a flow field is, and what it must beat: no motion, one motion for all, and two classical methods."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from perceiver_lib.modalities.optical_flow import warp
from perceiver_lib.tokens import AnyArray

SINTEL_BANDS = (0.0, 10.0, 40.0, np.inf)
"""Pixels of true motion that the Sintel benchmark reports apart (s0-10, s10-40, s40+)."""


def end_point_error(flow: Float[AnyArray, '*shape 2'], truth: Float[AnyArray, '*shape 2']) -> Float[AnyArray, '*shape']:
  """Distance in pixels between the ends of the vectors. Its mean is a loss: the gradient is finite (zero) at zero."""
  squared = ((jnp.asarray(flow) - jnp.asarray(truth)) ** 2).sum(-1)
  return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def angular_error(flow: Float[AnyArray, '*shape 2'], truth: Float[AnyArray, '*shape 2']) -> Float[AnyArray, '*shape']:
  """Degrees between the directions (right, down, 1 frame) in space and time (Barron et al., IJCV 1994)."""
  flow, truth = jnp.asarray(flow), jnp.asarray(truth)
  # atan2 of the cross product keeps the small angles that float32 arccos rounds away.
  cross = flow[..., 0] * truth[..., 1] - flow[..., 1] * truth[..., 0]
  sine = jnp.sqrt(((flow - truth) ** 2).sum(-1) + cross**2)
  return jnp.degrees(jnp.arctan2(sine, (flow * truth).sum(-1) + 1))


def flow_metrics(
  flow: Float[AnyArray, '*#shape 2'],
  truth: Float[AnyArray, '*shape 2'],
  valid: Bool[AnyArray, '...'] | None = None,
  *,
  bands: Sequence[float | int] = SINTEL_BANDS,
) -> dict[str, float]:
  """Means over all valid pixels.

  Args:
    flow, truth: in pixels, any leading axes; a single vector is broadcast.
    valid: pixels that have truth; None = all.
    bands: edges in pixels of true motion.

  Returns:
    'epe' end-point error in pixels; 'fl_all' percentage of pixels off by more than 3 pixels and 5 % of the true motion
    (KITTI); 'angular_error' in degrees; and 'epe_0_10' and so on for each band that holds a pixel.

  Raises:
    ValueError: if no pixel is valid, the mask has another shape, or a valid pixel's truth is not finite.
  """
  truth = np.asarray(truth)
  valid = np.ones(truth.shape[:-1], bool) if valid is None else np.asarray(valid)
  if valid.shape != truth.shape[:-1] or not valid.any():
    raise ValueError(
      f'Expected a mask {truth.shape[:-1]} with at least one valid pixel; got {valid.shape} with {valid.sum()}.'
    )
  flow, truth = np.broadcast_to(np.asarray(flow), truth.shape)[valid], truth[valid]
  if not np.isfinite(truth).all():
    raise ValueError('The truth of some valid pixels is not finite; mask pixels without truth with `valid`.')
  error, motion = np.asarray(end_point_error(flow, truth)), np.linalg.norm(truth, axis=-1)
  result = {
    'epe': error.mean(),
    'fl_all': 100 * ((error > 3) & (error > 0.05 * motion)).mean(),
    'angular_error': np.asarray(angular_error(flow, truth)).mean(),
  }
  for low, high in itertools.pairwise(bands):
    inside = (motion >= low) & (motion < high)
    if inside.any():
      result[f'epe_{low:g}_{high:g}'] = error[inside].mean()
  return {name: float(value) for name, value in result.items()}


def forward_backward_error(
  forward: Float[AnyArray, 'h w 2'], backward: Float[AnyArray, 'h w 2']
) -> tuple[Float[AnyArray, 'h w'], Bool[AnyArray, 'h w']]:
  """How far a pixel lands from itself after going to the second frame and back, and where that is consistent.

  Where the round trip fails, the pixel is occluded or one of the flows is wrong; no truth is needed.

  Returns:
    the error in pixels, and whether error^2 < 0.01 (|forward|^2 + |backward|^2) + 0.5 (Sundaram et al., ECCV 2010).
  """
  returned = warp(backward, forward)
  squared = ((forward + returned) ** 2).sum(-1)
  lengths = (forward**2).sum(-1) + (returned**2).sum(-1)
  return jnp.sqrt(squared), squared < 0.01 * lengths + 0.5
