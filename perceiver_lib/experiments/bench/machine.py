"""The machine's own limit: one large matrix product, to which everything else can be compared."""

from __future__ import annotations

from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.measuring import Call

SIZE = 2_048


def product(dtype: str) -> Call:
  """By JAX, which sums in float32 whatever the operands are."""
  import jax
  import jax.numpy as jnp

  a = jax.random.normal(jax.random.key(0), (SIZE, SIZE), dtype)
  multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))

  def call() -> None:
    multiply(a).block_until_ready()

  return call


def _torch() -> Call:
  import torch

  a = torch.randn(SIZE, SIZE)

  def call() -> None:
    torch.matmul(a, a)

  return call


CASES = {
  'matmul': Case(
    title=f'one product of two {SIZE} x {SIZE} matrices',
    contenders={
      'JAX, float32': Contender(build=lambda: product('float32')),
      'JAX, bfloat16 to float32': Contender(build=lambda: product('bfloat16'), note='operands bfloat16, sums float32'),
      'PyTorch, float32': Contender(build=_torch, package='torch'),
    },
    amount=2 * SIZE**3 / 1e9,
    unit='GFLOP',
  ),
}
