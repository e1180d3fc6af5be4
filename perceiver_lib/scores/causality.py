"""Whether a model keeps the one rule, asked of its gradients: what may not be known must not move anything.

A mask in the code is an intention; an entry of the Jacobian that is exactly zero is a fact.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from perceiver_lib.tokens import Tokens

jit_once = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
"""`jax.jit` for what is called once on little: compiling takes less than half the time, running many times as long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """A tiny model as a function of its input values, and what the rule says may depend on what.

  Attributes:
    name: for people.
    outputs: from input values `[1, m, 1]` to outputs, or to the latents where they are the outputs, `[1, o, e]`.
    allowed: which output may depend on which input.
  """

  name: str
  outputs: Callable[[Float[Array, '1 m 1']], Float[Array, '1 o e']]
  allowed: Bool[np.ndarray, 'o m']


def sensitivity(probe: Probe, seed: int) -> Float[np.ndarray, 'o m']:
  """How much each output moves with each input: the norm of the Jacobian over the output's channels."""
  values = jax.random.normal(jax.random.key(seed), (1, probe.allowed.shape[1], 1))
  jacobian = jit_once(jax.jacrev(probe.outputs))(values)[0, :, :, 0, :, 0]
  return np.asarray(jnp.linalg.norm(jacobian, axis=1))


def num_violations(probe: Probe, moved: Float[np.ndarray, 'o m']) -> int:
  """Pairs that the rule forbids and the gradient connects, or that it allows and nothing connects."""
  return int(np.sum((moved != 0) != probe.allowed))


@functools.partial(nnx.jit, static_argnums=0)
def influence(
  call: Callable[[nnx.Module, Tokens], Float[Array, 'n e']], model: nnx.Module, tokens: Tokens
) -> tuple[Float[Array, 'n e'], Float[Array, 'n m']]:
  """`call(model, tokens)` for inputs that are ids, and how much each of them moves each row of it: 0 = not at all.

  That is the Jacobian with respect to their embeddings: absolute values, summed over outputs and channels.

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
