"""Random changes of images as pure JAX functions, so that they run inside the jitted training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num, UInt32

from perceiver_lib.settings import check_numbers


def random_affine(
  key: Key[Array, ''] | UInt32[Array, '2'],
  images: Num[Array, 'b y x c'],
  *,
  max_degrees: float = 0.0,
  max_scale: float = 1.0,
  max_shear: float = 0.0,
  max_shift: float = 0.0,
) -> Num[Array, 'b y x c']:
  """Turns, zooms, shears and shifts every image about its centre by its own uniform random amounts.

  Args:
    max_degrees: rotation within +- this, degrees, counter-clockwise if positive.
    max_scale: zoom between 1 / max_scale and max_scale, uniform in its logarithm; at least 1.
    max_shear: horizontal shear within +- this, pixels of x a pixel of y.
    max_shift: shift within +- this on both axes, pixels, fractions included.

  Returns:
    Images of the same type; bilinear, 0 outside the old frame, integers rounded.

  Raises:
    ValueError: if max_scale is below 1 or another number negative.
  """
  check_numbers({'max_scale': max_scale}, least=1)
  check_numbers({'max_degrees': max_degrees, 'max_shear': max_shear, 'max_shift': max_shift}, least=0)
  amounts = jax.random.uniform(key, (5, len(images)), jnp.float32, -1.0, 1.0)
  angles = amounts[0] * jnp.deg2rad(jnp.float32(max_degrees))
  scales = jnp.exp(amounts[1] * jnp.log(jnp.float32(max_scale)))
  shears, shifts = amounts[2] * max_shear, amounts[3:].T * max_shift
  return jax.vmap(_affine)(images, angles, scales, shears, shifts)


def _affine(
  image: Num[Array, 'y x c'],
  angle: Float[Array, ''],
  scale: Float[Array, ''],
  shear: Float[Array, ''],
  shift: Float[Array, '2'],
) -> Num[Array, 'y x c']:
  """Every output pixel reads the input at the inverse map of its place: undo the shift, turn back, unshear, shrink."""
  height, width, _ = image.shape
  centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
  rows, columns = jnp.meshgrid(
    jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing='ij'
  )
  y, x = rows - centre_y - shift[0], columns - centre_x - shift[1]
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  y, x = cosine * y + sine * x, cosine * x - sine * y
  y, x = y / scale + centre_y, (x - shear * y) / scale + centre_x

  def sample(channel):
    return jax.scipy.ndimage.map_coordinates(channel, [y, x], order=1, mode='constant')

  sampled = jax.vmap(sample, in_axes=2, out_axes=2)(image.astype(jnp.float32))
  return (jnp.round(sampled) if jnp.issubdtype(image.dtype, jnp.integer) else sampled).astype(image.dtype)
