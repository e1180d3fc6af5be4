"""Which parameter is turned by which rule."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.training.optimizers import adamw_warmup_cosine, decay_mask, layer_kernels
from tests.support import assert_close


def test_muon_takes_the_kernels_of_layers_and_adam_the_rest():
  model = PerceiverAR(PerceiverARConfig.tiny(), rngs=nnx.Rngs(0))
  chosen = layer_kernels(nnx.state(model, nnx.Param))
  for path, chosen_here in nnx.to_flat_state(chosen):
    name = '.'.join(map(str, path))
    assert bool(chosen_here.get_value()) == (name.endswith('kernel') and not name.startswith('head')), name


@pytest.mark.parametrize('shapes', [{'bias': (3,), 'kernel': (5, 7), 'large': (128, 129)}, {'large': (128, 129)}])
def test_small_parameters_in_one_vector_are_moved_as_adamw_moves_them(shapes):
  params = {name: jax.random.normal(jax.random.key(1), shape) for name, shape in shapes.items()}
  gradients = [jax.tree.map(lambda leaf, step=step: jnp.sin(leaf + step), params) for step in range(3)]
  schedule = optax.warmup_cosine_decay_schedule(1e-2 / 3, 1e-2, 2, 9)
  plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1, mask=decay_mask))

  @functools.partial(jax.jit, static_argnums=0)
  def moved(optimizer, params):
    state = optimizer.init(params)
    for gradient in gradients:
      updates, state = optimizer.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
    return params

  with jax.numpy_dtype_promotion('standard'):
    ours = moved(adamw_warmup_cosine(1e-2, 9, warmup_steps=2, weight_decay=0.1), params)
    jax.tree.map(assert_close, ours, moved(plain, params))
