"""Batches of examples: repeatable, resumable at any step, and cheap beside a training step of a millisecond.

Sets in memory (`ArraySource`) are indexed as arrays; every other source, such as a prepared TFDS set or a folder of
images, is read through grain, by threads, ahead of the step. Both give the same kind of stream: the batch of a step
depends only on the seed and the number of the step, and shapes never change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from perceiver_lib.data.base import Source
from perceiver_lib.settings import check_counts

Batch = dict[str, Shaped[np.ndarray, 'b ...']]
Transform = Callable[[Batch, np.random.Generator], Batch]

FEW_EXAMPLES = 10_000
"""So many are read at once without grain, whose import and threads would take longer than they save."""
_THREADS = 8


class ArraySource:
  """A source in memory: arrays with one row an example."""

  def __init__(self, arrays: Mapping[str, Shaped[np.ndarray, 'n ...']]):
    lengths = {key: len(value) for key, value in arrays.items()}
    if len(set(lengths.values())) != 1:
      raise ValueError(f'All arrays of a source must have the same number of rows; they have {lengths}.')
    self.arrays = dict(arrays)

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values())))

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {key: value[index] for key, value in self.arrays.items()}


def stack(source: Source) -> Batch:
  """All examples of a source as one dict of arrays.

  Raises:
    ValueError: if the examples differ in shape.
  """
  if isinstance(source, ArraySource):
    return source.arrays
  if len(source) <= FEW_EXAMPLES:
    return _stack_examples([source[row] for row in range(len(source))])
  import grain

  read_ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=64 * _THREADS)
  return _stack_examples(list(grain.MapDataset.source(source).to_iter_dataset(read_ahead)))


def _stack_examples(examples: Sequence[Mapping[str, Any]]) -> Batch:
  batch = {}
  for key in examples[0]:
    try:
      batch[key] = np.stack([example[key] for example in examples])
    except ValueError as error:
      shapes = sorted({np.shape(example[key]) for example in examples})
      raise ValueError(
        f'Examples can be put into one batch only if their shapes agree; {key!r} has shapes {shapes[0]} and '
        f'{shapes[-1]}: resize or pad them first (images: image_size=).'
      ) from error
  return batch


def training_batches(
  source: Source, batch_size: int, *, seed: int, start_step: int = 0, transform: Transform | None = None
) -> Iterator[Batch]:
  """Endless full batches, from the batch of `start_step` on without reading those before.

  Every epoch is shuffled anew and epochs follow each other without a gap, so a batch may span two of them and every
  example is seen equally often. A set smaller than a batch is fine.

  Args:
    transform: `transform(batch, random)`, with a generator that depends on the seed and the step only.
  """
  _check_sizes(source, batch_size)
  if isinstance(source, ArraySource):
    return _array_batches(source, batch_size, seed, start_step, transform)
  return _grain_batches(source, batch_size, seed, start_step, transform)


def batches_from(
  source: Source, batch_size: int, *, seed: int, transform: Transform | None = None
) -> Callable[[int], Iterator[Batch]]:
  """What `fit` asks for: from a step to `training_batches` from that step on."""
  return lambda step: training_batches(source, batch_size, seed=seed, start_step=step, transform=transform)


def evaluation_batches(source: Source, batch_size: int) -> Iterator[Batch]:
  """One pass in order. The last batch is filled up by repeating its last example.

  Every batch has `example_valid` bool [b], False for fillings: shapes stay static, and a metric that weighs by it is
  exact.
  """
  _check_sizes(source, batch_size)
  for start in range(0, len(source), batch_size):
    rows = np.arange(start, start + batch_size)
    yield _read_rows(source, np.minimum(rows, len(source) - 1)) | {'example_valid': rows < len(source)}


def _read_rows(source: Source, rows: np.ndarray) -> Batch:
  if isinstance(source, ArraySource):
    return {key: value[rows] for key, value in source.arrays.items()}
  return _stack_examples([source[int(row)] for row in rows])


def _array_batches(
  source: ArraySource, batch_size: int, seed: int, start_step: int, transform: Transform | None
) -> Iterator[Batch]:
  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(len(source))

  step = start_step
  while True:
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), len(source))
    rows = np.concatenate([order(int(epoch))[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)])
    batch = _read_rows(source, rows)
    yield transform(batch, _generator(seed, step)) if transform else batch
    step += 1


def _grain_batches(
  source: Source, batch_size: int, seed: int, start_step: int, transform: Transform | None
) -> Iterator[Batch]:
  import grain

  [state] = np.random.SeedSequence((seed, 0)).generate_state(1)
  stream = grain.MapDataset.source(source).seed(int(state)).shuffle().repeat()
  batches = stream.batch(batch_size, batch_fn=_stack_examples)
  if transform:
    batches = batches.map_with_index(lambda step, batch: transform(batch, _generator(seed, step)))
  # Batches; grain's own 500 may not fit in memory.
  read_ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
  return iter(batches.slice(slice(start_step, None)).to_iter_dataset(read_ahead))


def _generator(seed: int, step: int) -> np.random.Generator:
  return np.random.default_rng((seed, 1, step))


def _check_sizes(source: Source, batch_size: int) -> None:
  check_counts({'batch_size': batch_size, 'the number of examples': len(source)})
