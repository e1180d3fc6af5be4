"""The best constant is the best, and the classical methods recover a known motion with the right sign and order."""

import numpy as np
import pytest

from perceiver_lib.baselines.flow import best_constant, flow_baselines, lucas_kanade, phase_correlation, tv_l1
from perceiver_lib.data.optical_flow import load_stereo_pair
from perceiver_lib.scores.flow import flow_metrics


def test_best_constant_is_no_worse_than_its_neighbours():
  rng = np.random.default_rng(1)
  truth = (rng.exponential(3, (17, 19, 2)) * (1, -2)).astype(np.float32)
  valid = rng.random((17, 19)) < 0.7
  truth[~valid] = np.inf
  best = best_constant(truth, valid)

  def error(constant):
    return flow_metrics(constant.astype(np.float32), truth, valid)['epe']

  for step in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
    assert error(best) < error(best + np.array(step))
  assert error(best) < error(truth[valid].mean(0)) - 0.01


@pytest.mark.parametrize('method, most', [(tv_l1, 1.2), (lucas_kanade, 1.0)])
def test_classical_methods_see_the_real_motion(method, most):
  pair, _ = load_stereo_pair(scale=8)
  flow = method(pair['frames'])
  assert flow.shape == (62, 92, 2) and flow.dtype == np.float32
  assert flow_metrics(flow, pair['flow'], pair['valid'])['epe'] < most  # no motion: 4.29; best constant: 1.84


def test_classical_methods_see_down_as_down():
  photo = load_stereo_pair(scale=8)[0]['frames'][0]
  pair = np.stack([photo[2:], photo[:-2]])
  np.testing.assert_allclose(np.median(tv_l1(pair), (0, 1)), (0, 2), atol=0.1)
  np.testing.assert_allclose(phase_correlation(pair), (0, 2), atol=0.1)


def test_baselines_know_what_they_may():
  rng = np.random.default_rng(0)
  frames, truth = rng.uniform(0, 255, (2, 2, 17, 17, 3)), np.zeros((2, 17, 17, 2), np.float32)
  truth[0], truth[1, :11] = (3, -1), (-2, 5)
  valid = np.ones((2, 17, 17), bool)
  flows = flow_baselines(frames, truth)
  assert list(flows) == [
    'no motion',
    'best constant per pair',
    'phase correlation',
    'TV-L1',
    'iterative Lucas-Kanade',
  ]
  assert all(flow.shape == truth.shape for flow in flows.values())
  # The geometric median of two motions is the one of more pixels.
  np.testing.assert_allclose(flows['best constant per pair'][:, 0, 0], [(3, -1), (-2, 5)], atol=1e-3)
  valid[1, :9] = False
  known = flow_baselines(frames, truth, valid)['best constant per pair']
  np.testing.assert_allclose(known[:, 0, 0], [(3, -1), (0, 0)], atol=1e-3)
