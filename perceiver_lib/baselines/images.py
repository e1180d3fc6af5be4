"""What images are usually read with: a small convolutional network and a small Vision Transformer, as baselines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import table_initializer
from perceiver_lib.attention.products import Linear
from perceiver_lib.blocks import LatentBlock, LayerConfig, layer_norm
from perceiver_lib.tokens import Tokens


class SmallCNN(nnx.Module):
  """Three 3x3 convolutions with 2x2 max-pooling, global mean, linear: local by design."""

  def __init__(self, num_input_channels: int, num_outputs: int, *, num_channels: int = 32, rngs: nnx.Rngs):
    widths = [num_input_channels, num_channels, 2 * num_channels, 2 * num_channels]
    self.convolutions = nnx.List(
      [nnx.Conv(before, after, (3, 3), rngs=rngs) for before, after in itertools.pairwise(widths)]
    )
    self.head = Linear(widths[-1], num_outputs, rngs=rngs)

  def __call__(self, images: Float[Array, 'b y x c']) -> Float[Array, 'b e']:
    return self.head(reduce(self.features(images), 'b y x c -> b c', 'mean'))

  def features(self, images: Float[Array, 'b y x c']) -> Float[Array, 'b v u d']:
    """What the mean is taken of: one vector for each 8 x 8 pixels."""
    for convolution in self.convolutions:
      images = nnx.max_pool(jax.nn.relu(convolution(images)), (2, 2), (2, 2), padding='SAME')
    return images


class SmallViT(nnx.Module):
  """Patches, learned positions, a stack of self-attention, mean, linear (Vision Transformer, arXiv 2010.11929)."""

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_outputs: int,
    *,
    patch_size: int,
    num_channels: int = 64,
    num_layers: int = 3,
    rngs: nnx.Rngs,
  ):
    height, width, channels = image_shape
    self.patch_size = patch_size
    self.embed = Linear(patch_size**2 * channels, num_channels, rngs=rngs)
    shape = (height // patch_size * (width // patch_size), num_channels)
    self.positions = nnx.Param(table_initializer()(rngs.params(), shape))
    layer = LayerConfig(num_heads=4, widening_factor=2)
    self.block = LatentBlock(layer, num_channels=num_channels, num_layers=num_layers, rngs=rngs)
    self.norm = layer_norm(num_channels, rngs)
    self.head = Linear(num_channels, num_outputs, rngs=rngs)

  def __call__(self, images: Float[Array, 'b y x c']) -> Float[Array, 'b e']:
    size = self.patch_size
    patches = rearrange(images, 'b (y i) (x j) c -> b (y x) (i j c)', i=size, j=size)
    tokens = Tokens(values=self.embed(patches) + self.positions[...][jnp.newaxis])
    return self.head(reduce(self.norm(self.block(tokens).values), 'b n d -> b d', 'mean'))


def classical_accuracies(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Test accuracy in % of a linear classifier and of 3-nearest-neighbours on raw pixels (scikit-learn)."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier

  flat = [examples['image'].reshape(len(examples['image']), -1) / 255.0 for examples in (train, test)]
  models = {
    'linear classifier': LogisticRegression(max_iter=200, C=0.05),
    '3 nearest neighbours': KNeighborsClassifier(n_neighbors=3),
  }
  return {
    name: 100.0 * float(model.fit(flat[0], train['label']).score(flat[1], test['label']))
    for name, model in models.items()
  }
