"""Sound as raw samples: each token is a short run of them that knows its place."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Num

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


def audio_tokens(samples: Num[AnyArray, 'b l'], *, patch_size: int = PATCH_SAMPLES, end_points: bool = True) -> Tokens:
  """Raw tokens, one a patch.

  Args:
    samples: in about [-1, 1].
    end_points: as `audio_positions`.

  Raises:
    ValueError: if patches do not tile the sound.
  """
  values = audio_patches(samples, patch_size=patch_size)
  return Tokens(values=values, position=jnp.asarray(audio_positions(values.shape[1], end_points=end_points))[None])
