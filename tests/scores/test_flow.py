"""Metrics by hand on a few vectors."""

import jax
import numpy as np
import pytest

from perceiver_lib.scores.flow import angular_error, end_point_error, flow_metrics, forward_backward_error


def vectors(*pairs):
  return np.array(pairs, np.float32)


def test_end_point_error_and_its_gradient_at_zero():
  np.testing.assert_allclose(end_point_error(vectors((3, 4), (1, 1)), vectors((0, 0), (1, 1))), [5, 0])
  gradient = jax.grad(lambda flow: end_point_error(flow, vectors((0, 0), (1, 1))).sum())(vectors((3, 4), (1, 1)))
  np.testing.assert_allclose(gradient, [(0.6, 0.8), (0, 0)], atol=1e-6)


def test_angular_error_against_arccos_in_float64():
  rng = np.random.default_rng(0)
  flow, truth = rng.normal(0, 5, (2, 97, 2))
  lifted = np.concatenate([[flow, truth], np.ones((2, 97, 1))], -1)
  lifted /= np.linalg.norm(lifted, axis=-1, keepdims=True)
  expected = np.degrees(np.arccos(lifted.prod(0).sum(-1)))
  measured = angular_error(flow.astype(np.float32), truth.astype(np.float32))
  np.testing.assert_allclose(measured, expected, atol=1e-3)
  assert angular_error(vectors((7, 3)), vectors((7, 3)))[0] == 0
  np.testing.assert_allclose(angular_error(vectors((1, 0)), vectors((0, 0))), 45, rtol=1e-6)


def test_metrics_by_hand():
  truth = vectors((1, 0), (0, 20), (100, 0), (np.inf, 0))
  flow = vectors((1, 2), (0, 24), (96, 0), (0, 0))
  valid = np.array([True, True, True, False])
  metrics = flow_metrics(flow, truth, valid)
  # Errors 2, 4, 4 pixels; the last is below 5 % of its motion, so only the second is an outlier.
  np.testing.assert_allclose(metrics['epe'], 10 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['fl_all'], 100 / 3, rtol=1e-6)
  assert (metrics['epe_0_10'], metrics['epe_10_40'], metrics['epe_40_inf']) == (2, 4, 4)
  assert set(flow_metrics(flow[:1], truth[:1], bands=(0, 2, 4))) == {'epe', 'fl_all', 'angular_error', 'epe_0_2'}


def test_truth_must_be_finite_where_valid():
  truth = vectors((1, 0), (np.inf, 0))
  with pytest.raises(ValueError, match='not finite'):
    flow_metrics(np.zeros(2, np.float32), truth)
  with pytest.raises(ValueError, match='at least one valid pixel'):
    flow_metrics(truth, truth, np.zeros(2, bool))
  with pytest.raises(ValueError, match='mask'):
    flow_metrics(truth, truth, np.ones(3, bool))


def test_round_trip_finds_the_inconsistent_pixels():
  forward = np.zeros((11, 13, 2), np.float32)
  forward[..., 0] = 2
  backward = -forward
  error, consistent = forward_backward_error(forward, backward)
  assert np.abs(error).max() == 0 and consistent.all()
  backward[5, 6] = (3, 0)
  error, consistent = forward_backward_error(forward, backward)
  # The pixel two to the left lands there.
  assert np.argwhere(~np.asarray(consistent)).tolist() == [[5, 4]] and error[5, 4] == 5
