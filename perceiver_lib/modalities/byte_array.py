"""Any file as a Perceiver may see it: a long row of bytes, one token a byte, which knows its value and its place."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from perceiver_lib.tokens import AnyArray, Tokens, float_type


def byte_array_tokens(values: UInt8[AnyArray, 'b m']) -> Tokens:
  """Raw tokens with positions from -1 for the first byte to 1 for the last; 5 bytes of memory a token."""
  position = jnp.linspace(-1, 1, values.shape[1], dtype=float_type())
  return Tokens(values=jnp.asarray(values), position=position[None, :, None])


def timed_byte_tokens(values: UInt8[AnyArray, 'b m'], num_timesteps: int) -> Tokens:
  """Raw tokens, equally many a timestep; positions go from -1 to 1 within each timestep; 9 bytes of memory a token.

  Raises:
    ValueError: if the timesteps do not divide the bytes.
  """
  num_bytes = values.shape[1]
  if num_bytes % num_timesteps:
    raise ValueError(f'{num_timesteps} timesteps need a multiple of as many bytes; got {num_bytes}.')
  place = np.tile(np.linspace(-1, 1, num_bytes // num_timesteps, dtype=float_type()), num_timesteps)
  time = np.arange(num_timesteps, dtype=np.int32).repeat(num_bytes // num_timesteps)
  return Tokens(
    values=jnp.asarray(values),
    position=jnp.asarray(place)[None, :, None],
    time=jnp.broadcast_to(time, values.shape),
  )
