"""Sound as raw samples: each token is a short run of them that knows its place and, beside a film, its frame."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, Num

from perceiver_lib.positions import grid
from perceiver_lib.tokens import AnyArray, Tokens

PATCH_SAMPLES = 16
"""Samples a token in multimodal autoencoding (Perceiver IO, section 4.3)."""


def audio_patches(samples: Num[AnyArray, 'b l'], *, patch_size: int = PATCH_SAMPLES) -> Num[AnyArray, 'b m k']:
  """Runs of `patch_size` samples.

  Raises:
    ValueError: if they do not tile the sound.
  """
  if samples.ndim != 2 or samples.shape[1] % patch_size or not samples.shape[1]:
    raise ValueError(f'Sounds must be [batch, samples], a multiple of {patch_size} samples; got shape {samples.shape}.')
  return rearrange(samples, 'b (m k) -> b m k', k=patch_size)


def audio_positions(num_patches: int, *, end_points: bool = True) -> Float[np.ndarray, 'm 1']:
  """Coordinates in [-1, 1] of the patches; `end_points` as `perceiver_lib.positions.grid`."""
  return grid((num_patches,), end_points=end_points)


def audio_times(
  num_patches: int, *, samples_per_second: float, steps_per_second: float, patch_size: int = PATCH_SAMPLES
) -> Int[np.ndarray, 'm']:
  """The timestep (frame) during which each patch is complete; step s lasts from s to s + 1 steps.

  A frame need not have a whole number of samples: of 16,000 a second, 12 frames a second get 83 or 84 patches each.
  A patch across a border belongs to the later frame, whose sound it holds too.
  """
  last = patch_size * np.arange(num_patches) + patch_size - 1
  return np.floor((last + 0.5) * steps_per_second / samples_per_second).astype(np.int32)


def audio_tokens(
  samples: Num[AnyArray, 'b l'],
  *,
  patch_size: int = PATCH_SAMPLES,
  rates: tuple[float, float] | None = None,
  end_points: bool = True,
) -> Tokens:
  """Raw tokens, one a patch.

  Args:
    samples: in about [-1, 1].
    rates: samples and timesteps a second, to give each token its timestep; None = no times.
    end_points: as `audio_positions`.

  Raises:
    ValueError: if patches do not tile the sound.
  """
  values = audio_patches(samples, patch_size=patch_size)
  m = values.shape[1]
  time = None
  if rates is not None:
    steps = audio_times(m, samples_per_second=rates[0], steps_per_second=rates[1], patch_size=patch_size)
    time = jnp.broadcast_to(steps, values.shape[:2])
  return Tokens(values=values, position=jnp.asarray(audio_positions(m, end_points=end_points))[None], time=time)
