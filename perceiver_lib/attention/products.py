"""How a product is made: with operands rounded to bfloat16 where a model asks for it, and over rows.

Every product of a model, those of linear layers and those of attention, forward and in the gradient, is `product`. In a
model with `mixed_precision` it rounds both operands to bfloat16 and sums in float32, which is what matrix units do
fast. Parameters, their gradients, the residual stream, softmax, layer norms, losses and the optimizer stay float32, so
no loss has to be scaled. Keys and values that wait for their product, in a chunk or in a cache, are kept in bfloat16.
Under JAX_ENABLE_X64, all that is float32 otherwise is float64.
It is for accelerators: on a CPU without matrix units single products ran twice as fast, but a training step of the 201M
language model took 1.5 times as long as in float32.

The choice is a static attribute of the layers, set once from the model's config: `jax.jit` and `nnx.jit` see it as part
of the module, where a global switch would be baked into whatever happened to be compiled under it.

Linear layer, layer norm and residual sum work over rows, all leading axes of the channels as one, because what is the
same mathematics is not the same program. On CPU, a language model of 26 layers:
- the kernel's gradient of a [b, m, c] product, a contraction over two axes, took 1.7 to 2.3 times as long as over rows;
- the gradient of a layer norm's scale took 14 times as long;
- a residual sum over [b, n, d] is separated by a reshape from the products that use it. XLA then recomputes the sum at
  each use from the terms of all layers above instead of storing it: work quadratic in depth, a tenth of the step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.tokens import float_type, sum_type

Operands = Literal['float32', 'bfloat16']


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
  """Float32 products at full precision on every device, for what is stated as an equality; also a decorator.

  GPUs and TPUs otherwise round the operands of a float32 product (to TF32, to bfloat16), which is what training wants:
  on an H200 attention was 4.4e-4 from float64 without this and 2.6e-7 with it. Programs compiled inside are others than
  those compiled outside.
  """
  with jax.default_matmul_precision('highest'):
    yield


def product(spec: str, a: Float[Array, '...'], b: Float[Array, '...'], operands: Operands = 'float32') -> Array:
  """An einsum of two arrays with sums and result in float32, or in float64 (gradients in the type of their operand).

  Args:
    spec: such as 'bhik,bhjk->bhij', with every letter in at least two of its three parts.
    a, b: float32, float64 or bfloat16; one that is bfloat16 already has the other rounded too.
    operands: 'bfloat16' rounds both, also those of the gradient's two products.
  """
  if operands == 'float32' and jnp.bfloat16 not in (a.dtype, b.dtype):
    return jnp.einsum(spec, a, b, preferred_element_type=sum_type(a, b))
  return _rounded_product(spec, a, b)


# JAX's own gradient would multiply the float32 cotangent, unrounded, with the bfloat16 operand, and round the result.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded_product(spec: str, a: Array, b: Array) -> Array:
  return _forward(spec, a, b)[0]


def _forward(spec: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
  rounded = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  # Empty arrays tell the backward pass the types of the operands.
  types = jnp.zeros(0, a.dtype), jnp.zeros(0, b.dtype)
  result = jnp.einsum(spec, *rounded, preferred_element_type=jnp.float32)
  return result.astype(sum_type(a, b)), (*rounded, *types)


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


def rounded(array: Float[Array, '...'], operands: Operands) -> Float[Array, '...']:
  """The array as it waits for its product."""
  return array.astype(jnp.bfloat16) if operands == 'bfloat16' else array


def rows(channels: Float[Array, '*b c']) -> Float[Array, 'm c']:
  return rearrange(channels, '... c -> (...) c')


def added(channels: Float[Array, '*b c'], branch: Float[Array, '*b c']) -> Float[Array, '*b c']:
  """The residual sum of a stream of channels and a branch."""
  return (rows(channels) + rows(branch)).reshape(channels.shape)


class Linear(nnx.Linear):
  """`nnx.Linear` over rows."""

  operands: Operands = 'float32'

  def __init__(self, *widths: int, **settings: Any):
    super().__init__(*widths, param_dtype=float_type(), **settings)

  def __call__(self, channels: Float[Array, '*b c']) -> Float[Array, '*b d']:
    result = product('mc,cd->md', rows(channels), self.kernel[...], self.operands)
    result = result if self.bias is None else result + self.bias[...][None]
    return result.reshape(*channels.shape[:-1], result.shape[-1])


class LayerNorm(nnx.LayerNorm):
  """`nnx.LayerNorm` over rows."""

  def __init__(self, num_channels: int, **settings: Any):
    super().__init__(num_channels, param_dtype=float_type(), **settings)

  def __call__(self, channels: Float[Array, '*b c']) -> Float[Array, '*b c']:
    # flax asks for the wider of float64 and float32, which strict promotion would refuse.
    with jax.numpy_dtype_promotion('standard'):
      return super().__call__(rows(channels)).reshape(channels.shape)
