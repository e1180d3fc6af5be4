"""The one linear layer of the library."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Linear):
  """`nnx.Linear` over a single leading axis.

  On CPU the kernel's gradient of a [b, m, c] product, a contraction over two axes, took 1.7 to 2.3 times as long as the
  same product over (b m) rows; the outputs are the same.
  """

  def __call__(self, channels: Float[Array, '*b c']) -> Float[Array, '*b d']:
    rows = super().__call__(channels.reshape(-1, channels.shape[-1]))
    return rows.reshape(*channels.shape[:-1], rows.shape[-1])
