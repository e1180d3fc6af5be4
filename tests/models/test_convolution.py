from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.models.convolution import ConvolutionConfig
from perceiver_lib.positions import grid
from perceiver_lib.tokens import Tokens


def stated(module, image):
  """Convolution 7 x 7 / 2 padded by (2, 3), stored batch norm, ReLU, maximum 3 x 3 / 2 padded by (0, 1)."""
  kernel, mean, variance, scale, bias = (
    np.asarray(variable[...]) for variable in (module.kernel, module.mean, module.variance, module.scale, module.bias)
  )
  padded = np.pad(image, ((2, 3), (2, 3), (0, 0)))
  side = image.shape[0] // 2
  out = np.array(
    [
      [np.einsum('yxc,yxce->e', padded[2 * y : 2 * y + 7, 2 * x : 2 * x + 7], kernel) for x in range(side)]
      for y in range(side)
    ]
  )
  out = (out - mean) / np.sqrt(variance + 1e-5) * scale + bias
  out = np.pad(np.maximum(out, 0), ((0, 1), (0, 1), (0, 0)))
  return np.array(
    [[out[2 * y : 2 * y + 3, 2 * x : 2 * x + 3].max((0, 1)) for x in range(side // 2)] for y in range(side // 2)]
  )


def test_convolution_is_what_its_name_says():
  random = np.random.default_rng(0)
  module = ConvolutionConfig(image_shape=(8, 8, 3), num_channels=5).build(nnx.Rngs(0))
  module.mean[...], module.bias[...] = jnp.asarray(random.normal(size=(2, 5)), jnp.float32)
  module.variance[...], module.scale[...] = jnp.asarray(random.uniform(0.5, 2, (2, 5)), jnp.float32)
  images = random.normal(size=(2, 8, 8, 3)).astype(np.float32)
  tokens = module(Tokens(values=jnp.asarray(images.reshape(2, 64, 3))))
  np.testing.assert_array_equal(tokens.position[0], grid((2, 2)))
  for example in range(2):
    expected = stated(module, images[example].astype(np.float64))
    np.testing.assert_allclose(tokens.values[example], expected.reshape(4, 5), rtol=0, atol=1e-5)


def test_convolution_refuses_another_size_and_masks():
  module = ConvolutionConfig(image_shape=(8, 8, 3)).build(nnx.Rngs(0))
  with pytest.raises(ValueError, match=r'all pixels of 8 x 8, without a mask; got \(1, 63, 3\)'):
    module(Tokens(values=jnp.zeros((1, 63, 3))))
  with pytest.raises(ValueError, match=r'got \(1, 64, 3\) with one'):
    module(Tokens(values=jnp.zeros((1, 64, 3)), valid=jnp.ones((1, 64), bool)))
