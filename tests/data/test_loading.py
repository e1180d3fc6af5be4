"""A batch is a pure function of seed and step: streams repeat, resume anywhere, and cover every example."""

import itertools

import numpy as np
import pytest

from perceiver_lib.data import loading
from perceiver_lib.data.loading import ArraySource, evaluation_batches, stack, training_batches

NUM_EXAMPLES = 23


class Lazy:
  """A source that is not in memory, hence read through grain."""

  def __init__(self, start=0, length=NUM_EXAMPLES):
    self.start, self.length = start, length

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    return {'id': self.start + int(index), 'value': np.full((2, 3), self.start + index, np.float32)}


SOURCES = {'arrays': ArraySource(stack(Lazy())), 'grain': Lazy()}


@pytest.fixture(params=SOURCES)
def source(request):
  return SOURCES[request.param]


def take(stream, count):
  return list(itertools.islice(stream, count))


def ids(batches):
  return np.concatenate([batch['id'] for batch in batches]).tolist()


def test_every_epoch_holds_every_example_once_and_is_shuffled_anew(source):
  seen = ids(take(training_batches(source, 5, seed=0), 3 * NUM_EXAMPLES // 5 + 1))
  epochs = [seen[start : start + NUM_EXAMPLES] for start in range(0, 3 * NUM_EXAMPLES, NUM_EXAMPLES)]
  assert all(sorted(epoch) == list(range(NUM_EXAMPLES)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(NUM_EXAMPLES))


def test_columns_stay_together_and_shapes_static(source):
  for batch in take(training_batches(source, 5, seed=0), 20):
    assert batch['value'].shape == (5, 2, 3)
    np.testing.assert_array_equal(batch['value'][:, 1, 2], batch['id'])


@pytest.mark.parametrize('start', [1, 4, 5, 37])
def test_stream_resumes_at_any_step(source, start):
  def noise(batch, random):
    return batch | {'noise': random.normal(size=3)}

  whole = take(training_batches(source, 5, seed=7, transform=noise), start + 3)
  tail = take(training_batches(source, 5, seed=7, transform=noise, start_step=start), 3)
  for expected, found in zip(whole[start:], tail, strict=True):
    np.testing.assert_array_equal(expected['id'], found['id'])
    np.testing.assert_array_equal(expected['noise'], found['noise'])
  assert not np.array_equal(whole[0]['noise'], whole[1]['noise'])


def test_seed_decides_the_order(source):
  first, again, other = (ids(take(training_batches(source, 5, seed=seed), 4)) for seed in (1, 1, 2))
  assert first == again != other


def test_resuming_reads_only_what_it_returns():
  read = []

  class Counting(Lazy):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  next(training_batches(Counting(), 5, seed=0, start_step=10_000))
  assert len(read) <= 5 * 17  # the batch and what grain reads ahead


def test_a_set_smaller_than_a_batch(source):
  batch = next(training_batches(source, 2 * NUM_EXAMPLES + 1, seed=0))
  assert np.bincount(batch['id'], minlength=NUM_EXAMPLES).min() == 2


def test_evaluation_is_exact_and_static(source):
  batches = list(evaluation_batches(source, 5))
  assert [batch['id'].shape for batch in batches] == [(5,)] * 5
  valid = np.concatenate([batch['example_valid'] for batch in batches])
  assert np.array(ids(batches))[valid].tolist() == list(range(NUM_EXAMPLES))
  assert batches[-1]['example_valid'].tolist() == [True, True, True, False, False]
  assert batches[-1]['id'].tolist() == [20, 21, 22, 22, 22]


def test_many_examples_are_stacked_in_order_by_grain(monkeypatch):
  plain = stack(Lazy())
  monkeypatch.setattr(loading, 'FEW_EXAMPLES', NUM_EXAMPLES - 1)
  read = stack(Lazy())
  assert read['id'].tolist() == plain['id'].tolist() == list(range(NUM_EXAMPLES))
  np.testing.assert_array_equal(read['value'], plain['value'])


def test_bad_input_gets_one_sentence():
  class Ragged(Lazy):
    def __getitem__(self, index):
      return {'image': np.zeros((index + 1, 2))}

  with pytest.raises(ValueError, match=r"'image' has shapes \(1, 2\) and \(23, 2\)"):
    stack(Ragged())
  with pytest.raises(ValueError, match='same number of rows'):
    ArraySource({'a': np.zeros(3), 'b': np.zeros(4)})
  with pytest.raises(ValueError, match='the number of examples must be whole, 1 or more; got 0'):
    training_batches(Lazy(0, 0), 5, seed=0)
  with pytest.raises(ValueError, match='batch_size must be whole, 1 or more; got 0'):
    next(evaluation_batches(Lazy(), 0))
