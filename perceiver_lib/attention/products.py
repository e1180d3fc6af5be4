"""Mixed precision, the whole of it: products round their operands to bfloat16, everything else is float32.

Every product of a model, those of linear layers and those of attention, forward and in the gradient, is `product`. In a
model with `mixed_precision` it rounds both operands to bfloat16 and sums in float32, which is what matrix units do
fast. Parameters, their gradients, the residual stream, softmax, layer norms, losses and the optimizer stay float32, so
no loss has to be scaled. Keys and values that wait for their product, in a chunk or in a cache, are kept in bfloat16.
It is for accelerators: on a CPU without matrix units single products ran twice as fast, but a training step of the 201M
language model took 1.5 times as long as in float32.

The choice is a static attribute of the layers, set once from the model's config: `jax.jit` and `nnx.jit` see it as part
of the module, where a global switch would be baked into whatever happened to be compiled under it.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Operands = Literal['float32', 'bfloat16']


def product(spec: str, a: Float[Array, '...'], b: Float[Array, '...'], operands: Operands = 'float32') -> Array:
  """An einsum of two arrays with sums, result and gradients in float32 (gradients in the type of their operand).

  Args:
    spec: such as 'bhik,bhjk->bhij', with every letter in at least two of its three parts.
    a, b: float32 or bfloat16; one that is bfloat16 already has the other rounded too.
    operands: 'bfloat16' rounds both, also those of the gradient's two products.
  """
  if operands == 'float32' and jnp.bfloat16 not in (a.dtype, b.dtype):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
  return _rounded_product(spec, a, b)


# JAX's own gradient would multiply the float32 cotangent, unrounded, with the bfloat16 operand, and round the result.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded_product(spec: str, a: Array, b: Array) -> Array:
  return _forward(spec, a, b)[0]


def _forward(spec: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
  rounded = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  # Empty arrays tell the backward pass the types of the operands.
  types = jnp.zeros(0, a.dtype), jnp.zeros(0, b.dtype)
  return jnp.einsum(spec, *rounded, preferred_element_type=jnp.float32), (*rounded, *types)


def _backward(spec: str, residuals: tuple[Array, Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
  a, b, like_a, like_b = residuals
  operands, result = spec.split('->')
  left, right = operands.split(',')
  cotangent = cotangent.astype(jnp.bfloat16)
  d_a = jnp.einsum(f'{result},{right}->{left}', cotangent, b, preferred_element_type=jnp.float32)
  d_b = jnp.einsum(f'{left},{result}->{right}', a, cotangent, preferred_element_type=jnp.float32)
  return d_a.astype(like_a.dtype), d_b.astype(like_b.dtype)


_rounded_product.defvjp(_forward, _backward)


def round_operands(model: nnx.Module) -> None:
  """Makes all products of a model those of bfloat16 operands: the last thing in its construction."""
  for _, module in nnx.iter_modules(model):
    if hasattr(module, 'operands'):
      module.operands = 'bfloat16'
