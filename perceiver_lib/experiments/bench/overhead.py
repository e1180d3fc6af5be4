"""What Python adds to a training step of toy size: `fit` beside its own compiled program, called in a loop.

A model of this size computes for a millisecond, so the host shows: the loop, the batch on its way to the device, the
records. Both contenders do the same updates; what `fit` takes longer, divided by the steps, is the overhead of a step.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.measuring import Call

NUM_STEPS = 1_000
"""Steps of a call; `fit` waits for the device once in as many, where it records the loss."""

BATCH_SIZE, SIDE = 8, 8


def _model() -> Any:
  from flax import nnx

  from perceiver_lib.modalities.pixels import pixel_adapter
  from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig

  adapter = pixel_adapter((SIDE, SIDE, 1), num_bands=4)
  return Perceiver(PerceiverConfig.tiny(adapter, num_outputs=10), rngs=nnx.Rngs(0))


def _loss(model: Any, batch: Any, rngs: Any) -> tuple[Any, dict[str, Any]]:
  from perceiver_lib.modalities.pixels import pixel_tokens
  from perceiver_lib.training.losses import cross_entropy
  from perceiver_lib.training.metrics import accuracy

  logits = model(pixel_tokens(batch['image']), rngs=rngs)
  return cross_entropy(logits, batch['label']), {'accuracy': accuracy(logits, batch['label'])}


def _batches() -> list[dict[str, Any]]:
  import numpy as np

  random = np.random.default_rng(0)
  return [
    {
      'image': random.integers(0, 256, (BATCH_SIZE, SIDE, SIDE, 1)).astype(np.uint8),
      'label': random.integers(0, 10, BATCH_SIZE).astype(np.int32),
    }
    for _ in range(16)
  ]


def _optimizer() -> Any:
  import optax

  return optax.adamw(1e-3)


def _fit() -> Call:
  """`fit` runs in a thread and gets its batches in portions of `NUM_STEPS`; asking for more, it has done the last."""
  from perceiver_lib.training.fit import fit

  portions: queue.SimpleQueue = queue.SimpleQueue()
  # The first batch of all is only looked at, by an iterator of its own.
  portions.put(None)
  finished = threading.Semaphore(0)

  def batches(start: int) -> Iterator[dict[str, Any]]:
    endless = itertools.cycle(_batches())
    while True:
      portions.get()
      yield from itertools.islice(endless, NUM_STEPS)
      finished.release()

  train = functools.partial(fit, _model(), _loss, batches, optimizer=_optimizer(), num_steps=10**9, seed=0)
  threading.Thread(target=lambda: train(log_every=NUM_STEPS, progress='silent'), daemon=True).start()

  def call() -> None:
    portions.put(None)
    finished.acquire()

  return call


def _program() -> Call:
  import jax
  from flax import nnx

  from perceiver_lib.training.host import keep_freed_memory
  from perceiver_lib.training.step import functional_loss, initial_state, make_train_step

  keep_freed_memory()  # as `fit` does
  graphdef, params, rest = nnx.split(_model(), nnx.Param, ...)
  batches = [jax.device_put(batch) for batch in _batches()]
  loss_of = functional_loss(graphdef, _loss)
  state = initial_state(params, rest, _optimizer(), 0, loss_of, batches[0], ema=False)
  leaves, structure = jax.tree.flatten(state)
  step = make_train_step(loss_of, _optimizer(), None, NUM_STEPS)
  flat = lambda leaves, batch: jax.tree.leaves(step(jax.tree.unflatten(structure, leaves), batch))  # noqa: E731
  compiled = jax.jit(flat, donate_argnums=0).lower(leaves, batches[0]).compile()
  held = [leaves]

  def call() -> None:
    for batch in itertools.islice(itertools.cycle(batches), NUM_STEPS):
      held[0] = compiled(held[0], batch)
    jax.block_until_ready(held[0])

  return call


CASES = {
  'overhead': Case(
    title=f'{NUM_STEPS:,} training steps of PerceiverConfig.tiny, {BATCH_SIZE} images of {SIDE} x {SIDE}',
    contenders={
      'fit': Contender(build=_fit, note='batches from NumPy, one record'),
      'its compiled step alone': Contender(build=_program, note='batches on the device, no records'),
    },
    amount=NUM_STEPS,
    unit='steps',
  ),
}
