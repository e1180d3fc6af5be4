"""Photographs as the largest ImageNet model of Perceiver IO takes them: through a convolution first."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from perceiver_lib.positions import grid
from perceiver_lib.settings import check_counts
from perceiver_lib.tokens import Tokens, float_type

BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionConfig:
  """Convolution 7 x 7 with stride 2, batch norm, ReLU, maximum over 3 x 3 with stride 2: a quarter of each side.

  deepmind-research `perceiver/io_processors.py` (`Conv2DDownsample`), with its TensorFlow-style SAME padding.

  Attributes:
    image_shape: height, width and channels of the image that the tokens make up.
    num_channels: of the result.
    padding: 'deepmind', SAME: 224 pixels a side become 56. 'hugging_face', 3 pixels around the image and none around
      what the maximum is taken of: 55.
  """

  image_shape: tuple[int, int, int]
  num_channels: int = 64
  padding: Literal['deepmind', 'hugging_face'] = 'deepmind'

  def __post_init__(self):
    check_counts(self, 'image_shape', 'num_channels')

  def build(self, rngs: nnx.Rngs) -> Convolution:
    return Convolution(self, rngs=rngs)


class Convolution(nnx.Module):
  """Batch norm uses its stored statistics and never updates them, so this is for released weights, not for training."""

  def __init__(self, config: ConvolutionConfig, *, rngs: nnx.Rngs):
    self.config = config
    width = config.num_channels
    kernel_shape = (7, 7, config.image_shape[2], width)
    self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), kernel_shape))
    self.scale, self.bias = nnx.Param(jnp.ones((width,))), nnx.Param(jnp.zeros((width,)))
    self.mean, self.variance = nnx.BatchStat(jnp.zeros((width,))), nnx.BatchStat(jnp.ones((width,)))

  def __call__(self, tokens: Tokens) -> Tokens:
    """Pixels in row-major order, `[b, y x, c]`, to tokens of a quarter of each side with positions in [-1, 1].

    Raises:
      ValueError: if the tokens do not make up the image, or some of them are padding.
    """
    height, width, channels = self.config.image_shape
    shape = tokens.values.shape
    if shape[1:] != (height * width, channels) or tokens.valid is not None:
      raise ValueError(
        f'The convolution needs [batch, {height * width}, {channels}], all pixels of {height} x {width}, without a '
        f'mask; got {shape}{"" if tokens.valid is None else " with one"}.'
      )
    images = rearrange(tokens.values.astype(float_type()), 'b (y x) c -> b y x c', y=height)
    same = self.config.padding == 'deepmind'
    images = jax.lax.conv_general_dilated(
      images, self.kernel[...], (2, 2), 'SAME' if same else ((3, 3), (3, 3)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    factor = self.scale[...] * jax.lax.rsqrt(self.variance[...] + BATCH_NORM_EPSILON)
    images = (images - self.mean[...][None, None, None]) * factor[None, None, None] + self.bias[...][None, None, None]
    pooled = (1, 3, 3, 1), (1, 2, 2, 1), 'SAME' if same else 'VALID'
    images = jax.lax.reduce_window(jax.nn.relu(images), -math.inf, jax.lax.max, *pooled)
    position = jnp.asarray(grid(images.shape[1:3]))[None]
    return Tokens(values=rearrange(images, 'b y x c -> b (y x) c'), position=position)
