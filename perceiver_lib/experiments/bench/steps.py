"""What contenders share: random weights without training, and a compiled forward pass or training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from perceiver_lib.experiments.measuring import Call

LEARNING_RATE = 1e-4


def random_weights(model: Callable[..., Any], config: Any) -> tuple[Any, Any]:
  """The definition of a model and weights of a plausible size: neither time nor memory depends on their values."""
  from flax import nnx

  from perceiver_lib.parameters import abstract, filled

  return nnx.split(filled(abstract(model, config), scale=0.02))


def forward_call(graphdef: Any, weights: Any, forward: Callable[..., Any], *inputs: Any) -> Call:
  import jax
  from flax import nnx

  compiled = jax.jit(lambda weights, *inputs: forward(nnx.merge(graphdef, weights), *inputs))

  def call() -> None:
    jax.block_until_ready(compiled(weights, *inputs))

  return call


def train_call(graphdef: Any, weights: Any, loss: Callable[..., Any], *inputs: Any) -> Call:
  """One step of AdamW in place: the buffers of the old state are given to the new one. Memory is kept as `fit` does."""
  import jax
  import optax
  from flax import nnx

  from perceiver_lib.training.host import keep_freed_memory

  keep_freed_memory()
  optimizer = optax.adamw(LEARNING_RATE)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(weights: Any, moments: Any, *inputs: Any) -> tuple[Any, Any]:
    gradients = jax.grad(lambda weights: loss(nnx.merge(graphdef, weights), *inputs))(weights)
    updates, moments = optimizer.update(gradients, moments, weights)
    return optax.apply_updates(weights, updates), moments

  state = [weights, optimizer.init(weights)]

  def call() -> None:
    state[:] = step(*state, *inputs)
    jax.block_until_ready(state)

  return call


def torch_train_call(model: Any, loss: Callable[[], Any]) -> Call:
  """One step of PyTorch's AdamW."""
  import torch

  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

  def call() -> None:
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()

  return call


def torch_forward_call(model: Any, forward: Callable[[], Any]) -> Call:
  import torch

  model.eval()

  def call() -> None:
    with torch.inference_mode():
      forward()

  return call
