"""What an output depends on, for inputs that are ids: derivatives with respect to their embeddings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.tokens import Tokens


@functools.partial(nnx.jit, static_argnums=0)
def influence(
  call: Callable[[nnx.Module, Tokens], Float[Array, 'n e']], model: nnx.Module, tokens: Tokens
) -> tuple[Float[Array, 'n e'], Float[Array, 'n m']]:
  """`call(model, tokens)`, and how much each input moves each row of it: 0 = not at all, whatever its value is.

  That is the Jacobian's absolute values, summed over a row's outputs and an input's channels.

  Args:
    call: any use of the model that gives rows of outputs; it reads the tokens by `model.input_adapter` only.
    model: with an `input_adapter`.
    tokens: one sequence of ids `[1, m]`.
  """

  def outputs(embedded: Float[Array, '1 m c']) -> tuple[Float[Array, 'n e'], Float[Array, 'n e']]:
    reader = nnx.clone(model)
    reader.input_adapter = lambda tokens: tokens.values  # what comes is embedded already, so that it has a derivative
    rows = call(reader, dataclasses.replace(tokens, values=embedded))
    return rows, rows

  jacobian, rows = jax.jacfwd(outputs, has_aux=True)(model.input_adapter(tokens))
  return rows, jnp.abs(jacobian).sum((1, 2, 4))
