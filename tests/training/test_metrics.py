from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.training import metrics
from perceiver_lib.training.losses import cross_entropy

NUM_TRACES = []


def measure(model, batch):
  NUM_TRACES.append(1)
  logits = model(batch['x'])
  return {
    'accuracy': metrics.correct(logits, batch['label']),
    'loss': (cross_entropy(logits, batch['label'], reduction='none'), batch['weight']),
  }


def make_batches(num_examples, batch_size, *, padding):
  """All examples in batches; the last is filled up with `padding`, marked invalid."""
  random = np.random.default_rng(0)
  x = random.normal(size=(num_examples, 7)).astype(np.float32)
  label = random.integers(0, 5, num_examples)
  weight = random.random(num_examples).astype(np.float32)
  for start in range(0, num_examples, batch_size):
    part = slice(start, start + batch_size)
    missing = batch_size - len(x[part])
    yield {
      'x': np.concatenate([x[part], np.full((missing, 7), padding, np.float32)]),
      'label': np.concatenate([label[part], np.zeros(missing, label.dtype)]),
      'weight': np.concatenate([weight[part], np.ones(missing, np.float32)]),
      'example_valid': np.arange(batch_size) < batch_size - missing,
    }


def test_means_do_not_depend_on_batching_or_padding():
  model = nnx.Linear(7, 5, rngs=nnx.Rngs(0))
  (whole,) = make_batches(23, 23, padding=0.0)
  logits = np.asarray(model(jnp.asarray(whole['x'])))
  loss = np.asarray(cross_entropy(jnp.asarray(logits), jnp.asarray(whole['label']), reduction='none'), np.float64)
  expected = {
    'accuracy': float((logits.argmax(-1) == whole['label']).mean()),
    'loss': float((loss * whole['weight']).sum() / whole['weight'].sum(dtype=np.float64)),
  }
  for batch_size in (5, 11, 23):
    means = metrics.evaluate_dataset(model, measure, make_batches(23, batch_size, padding=np.nan))
    assert means == pytest.approx(expected, rel=1e-6), batch_size


def test_compiles_once_over_repeated_evaluations():
  NUM_TRACES.clear()
  for seed in (3, 4):
    metrics.evaluate_dataset(nnx.Linear(7, 5, rngs=nnx.Rngs(seed)), measure, make_batches(29, 13, padding=0.0))
  assert len(NUM_TRACES) == 1


def test_no_batch_no_weight_and_means_of_batches_are_refused():
  model = nnx.Linear(7, 5, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='got no batch'):
    metrics.evaluate_dataset(model, measure, [])
  batches = [dict(batch, example_valid=np.zeros(5, bool)) for batch in make_batches(23, 5, padding=0.0)]
  with pytest.raises(ValueError, match='no valid example'):
    metrics.evaluate_dataset(model, measure, batches)
  with pytest.raises(ValueError, match='not their mean'):
    metrics.evaluate_dataset(model, lambda m, b: {'loss': m(b['x']).mean()}, make_batches(5, 5, padding=0.0))


def test_accuracy_counts_valid_positions_only():
  logits = jnp.eye(3)[jnp.asarray([[0, 1, 2, 0]])]
  labels = jnp.asarray([[0, 1, 0, 1]])
  assert float(metrics.accuracy(logits, labels)) == 0.5
  valid = jnp.asarray([[True, True, True, False]])
  assert float(metrics.accuracy(logits, labels, valid=valid)) == pytest.approx(2 / 3)
  assert float(metrics.accuracy(logits, labels, valid=~(valid | True))) == 0.0
  with pytest.raises(ValueError, match='labels of shape'):
    metrics.accuracy(logits, labels[:, :2])


def test_units_of_loss():
  assert metrics.bits_per_byte(math.log(256)) == pytest.approx(8.0)
  assert metrics.bits_per_byte(math.log(256), bytes_per_token=4.0) == pytest.approx(2.0)
  assert metrics.perplexity(math.log(17)) == pytest.approx(17.0)
