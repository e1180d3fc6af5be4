from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from perceiver_lib.flops import count_flops, step_flops
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.parameters import abstract
from perceiver_lib.tokens import Tokens

SHAPE = jax.ShapeDtypeStruct


def forward(model_class, config, num_inputs, num_values) -> float:
  """GFLOPs of one example, read in one piece."""
  model = abstract(model_class, config)
  values = SHAPE((1, num_inputs, num_values), jnp.float32) if num_values else SHAPE((1, num_inputs), jnp.int32)
  position = SHAPE((1, num_inputs, 2), jnp.float32) if num_values else SHAPE((1, num_inputs, 1), jnp.int32)

  def run(model, values, position):
    return model(Tokens(values=values, position=position), chunk_size=num_inputs)

  return count_flops(run, model, values, position) / 1e9


@pytest.mark.parametrize(
  ('config', 'num_inputs', 'num_values', 'ours', 'paper'),
  [
    (PerceiverConfig.paper_imagenet(num_cross_attends=1), 50_176, 3, 404.0, 404.3),
    (PerceiverConfig.paper_imagenet(num_cross_attends=8), 50_176, 3, 706.3, 707.2),
    (PerceiverIOConfig.paper_imagenet('fourier'), 50_176, 3, 406.1, 407),
    (PerceiverIOConfig.paper_imagenet('convolution'), 50_176, 3, 369.4, 369),
    (PerceiverIOConfig.paper_flow('small'), 182_528, 54, 986.8, 987),
  ],
)
def test_published_flops_are_reproduced(config, num_inputs, num_values, ours, paper):
  """Perceiver, App. B; Perceiver IO, Tab. 7 and App. H."""
  model_class = Perceiver if isinstance(config, PerceiverConfig) else PerceiverIO
  counted = forward(model_class, config, num_inputs, num_values)
  assert counted == pytest.approx(ours, abs=0.05)
  assert counted == pytest.approx(paper, rel=0.003)


def test_published_flops_that_plain_counting_does_not_reproduce():
  """Perceiver IO, Tab. 1, has 113 for the model on bytes."""
  assert forward(PerceiverIO, PerceiverIOConfig.paper_language('bytes'), 2048, 0) == pytest.approx(120.9, abs=0.05)


def test_loops_branches_and_gradients_are_counted():
  x, y = SHAPE((2, 3, 5), jnp.float32), SHAPE((2, 5, 7), jnp.float32)
  product = 2 * 2 * 3 * 5 * 7
  assert count_flops(jnp.matmul, x, y) == product
  assert count_flops(jax.jit(jax.checkpoint(jnp.matmul)), x, y) == product
  assert count_flops(lambda x, y: jax.lax.map(lambda _: x @ y, jnp.arange(11)), x, y) == 11 * product
  assert (
    count_flops(lambda x, y: jax.lax.cond(x[0, 0, 0] > 0, jnp.matmul, lambda x, y: (x @ y) @ y.mT @ y, x, y), x, y)
    == 3 * product
  )
  assert count_flops(jax.grad(lambda x, y: jnp.sum(x @ y), argnums=(0, 1)), x, y) == 3 * product
  image, kernel = SHAPE((1, 4, 6, 3), jnp.float32), SHAPE((3, 3, 3, 5), jnp.float32)

  def convolve(image, kernel):
    return jax.lax.conv_general_dilated(image, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  assert count_flops(convolve, image, kernel) == 2 * (2 * 3 * 5) * (3 * 3 * 3)


def test_a_step_is_a_forward_pass_and_the_gradients_of_its_parameters():
  model = abstract(lambda rngs: nnx.List([nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)]))

  def loss(model, batch, rngs):
    return model[1](model[0](batch)).sum(), {}

  first, second = 2 * 11 * 5 * 7, 2 * 11 * 7 * 3
  # Nobody asks for the gradient in the inputs of the first layer.
  assert step_flops(model, loss, SHAPE((11, 5), jnp.float32)) == 2 * first + 3 * second


def test_a_loop_of_unknown_length_is_refused():
  def loop(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ x, x)

  with pytest.raises(ValueError, match='while loop cannot be counted'):
    count_flops(loop, SHAPE((2, 2), jnp.float32))
