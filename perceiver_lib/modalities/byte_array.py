"""Any file as a Perceiver may see it: a long row of bytes, one token a byte, which knows its value and its place."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, UInt8

from perceiver_lib.tokens import Tokens


def byte_array_tokens(values: UInt8[Array, 'b m']) -> Tokens:
  """Raw tokens with positions from -1 for the first byte to 1 for the last; 5 bytes of memory a token."""
  position = jnp.linspace(-1, 1, values.shape[1], dtype=jnp.float32)
  return Tokens(values=jnp.asarray(values), position=position[None, :, None])
