"""Whether a model keeps the one rule, asked of its gradients: what may not be known must not move anything.

A mask in the code is an intention; an entry of the Jacobian that is exactly zero is a fact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float


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
  jacobian = jax.jit(jax.jacrev(probe.outputs))(values)[0, :, :, 0, :, 0]
  return np.asarray(jnp.linalg.norm(jacobian, axis=1))


def num_violations(probe: Probe, moved: Float[np.ndarray, 'o m']) -> int:
  """Pairs that the rule forbids and the gradient connects, or that it allows and nothing connects."""
  return int(np.sum((moved != 0) != probe.allowed))
