from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.training.losses import cross_entropy


def example(seed=0, shape=(3, 7), classes=11):
  random = np.random.default_rng(seed)
  logits = random.normal(size=(*shape, classes)).astype(np.float32) * 3
  return jnp.asarray(logits), jnp.asarray(random.integers(0, classes, shape))


def reference(logits, labels, z_loss=0.0):
  """The same in NumPy float64, with the target written out as a distribution."""
  logits = np.asarray(logits, np.float64)
  log_normaliser = np.log(np.exp(logits).sum(-1))
  target = np.eye(logits.shape[-1])[np.asarray(labels)]
  return -(target * (logits - log_normaliser[..., None])).sum(-1) + z_loss * log_normaliser**2


@pytest.mark.parametrize('settings', [{}, {'z_loss': 0.01}])
def test_equals_the_definition(settings):
  logits, labels = example()
  expected = reference(logits, labels, **settings)
  np.testing.assert_allclose(cross_entropy(logits, labels, reduction='none', **settings), expected, rtol=1e-5)
  np.testing.assert_allclose(cross_entropy(logits, labels, reduction='sum', **settings), expected.sum(), rtol=1e-5)
  np.testing.assert_allclose(cross_entropy(logits, labels, **settings), expected.mean(), rtol=1e-5)


def test_uniform_logits_cost_log_of_the_number_of_classes():
  assert float(cross_entropy(jnp.zeros((5, 13)), jnp.arange(5))) == pytest.approx(np.log(13), rel=1e-6)


def test_invalid_positions_change_neither_loss_nor_gradient():
  logits, labels = example()
  valid = jnp.asarray(np.random.default_rng(1).random(labels.shape) < 0.6)
  garbage = jnp.where(valid[..., None], logits, jnp.nan)
  wrong_labels = jnp.where(valid, labels, 10_000)
  loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, wrong_labels, valid=valid))(garbage)
  expected = reference(logits, labels)[np.asarray(valid)].mean()
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  assert bool(jnp.isfinite(gradient).all())
  assert not gradient[~valid].any()
  assert gradient[valid].any()


def test_no_valid_position_costs_nothing():
  logits, labels = example()
  assert float(cross_entropy(logits, labels, valid=jnp.zeros(labels.shape, bool))) == 0.0


@pytest.mark.parametrize('label', [-1, 11])
def test_label_out_of_range_is_nan_rather_than_some_other_class(label):
  logits, labels = example()
  assert bool(jnp.isnan(cross_entropy(logits, labels.at[0, 0].set(label))))


def test_bfloat16_logits_are_summed_in_float32():
  logits, labels = example()
  loss = cross_entropy(logits.astype(jnp.bfloat16), labels)
  assert loss.dtype == jnp.float32
  assert float(loss) == pytest.approx(reference(logits.astype(jnp.bfloat16), labels).mean(), rel=1e-5)


def test_wrong_shapes_and_reductions_are_refused():
  logits, labels = example()
  with pytest.raises(ValueError, match='one label per row'):
    cross_entropy(logits, labels[:, 0])
  with pytest.raises(ValueError, match='valid must have the shape'):
    cross_entropy(logits, labels, valid=jnp.ones(3, bool))
  with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
    cross_entropy(logits, labels, reduction='average')
