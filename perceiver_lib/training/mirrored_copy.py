"""The mirrored copy task (`data.mirrored_copy`) for next-token models: crops that reach every byte, and accuracy."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.training.sequences import examples_of, keep_first, keep_last


def crop_ends(key: Array, batch_size: int, length: int, num_latents: int) -> Int[Array, 'b 1']:
  """Inputs that each row keeps in a training step: crops end anywhere in the second half.

  Ends up to `num_latents` - 1 behind the last input count as there, so that the farthest copies have a latent at least
  as often as the others. With ends drawn among the inputs alone they would hardly be trained.
  """
  end = jax.random.randint(key, (batch_size, 1), length // 2, length - 1 + num_latents)
  return jnp.minimum(end, length - 1)


def copy_accuracy(
  model: nnx.Module, batch: Mapping[str, np.ndarray], *, num_latents: int, window: int | None = None
) -> tuple[Int[np.ndarray, 'd'], Float[np.ndarray, 'd']]:
  """Distances between a byte and its copy, 1 3 5 ..., and the share of new sequences in which it is right at each.

  A window slides byte by byte, so that every prediction sees all of it; else crops move on by the latents.

  Args:
    batch: new sequences, by `data.mirrored_copy.copy_batch`.
    num_latents: predictions of one call.
    window: last inputs that the model sees; None = all.
  """
  num_sequences, length = batch['ids'].shape
  num_targets = length // 2 - 1
  step = num_latents if window is None else 1
  seen = jnp.int32(window or length)
  right = np.zeros((num_sequences, num_targets), bool)
  for first in range(0, num_targets, step):
    stop = min(first + step, num_targets)
    predicted = np.asarray(_copied(model, batch, jnp.int32(length // 2 - 1 + stop), seen, num_latents))
    right[:, first:stop] = predicted[:, first - stop :] == batch['ids'][:, length // 2 + first : length // 2 + stop]
  return 2 * np.arange(num_targets) + 1, right.mean(axis=0)


@functools.partial(nnx.jit, static_argnums=4)
def _copied(
  model: nnx.Module, batch: Mapping[str, Array], num_inputs: Int[Array, ''], window: Int[Array, ''], num_latents: int
) -> Int[Array, 'b n']:
  """The likeliest next tokens at the last latents of the first `num_inputs` inputs."""
  examples = keep_last(keep_first(examples_of(batch), num_inputs), window)
  return jnp.argmax(model(examples.inputs, num_latents=num_latents).values, axis=-1)
