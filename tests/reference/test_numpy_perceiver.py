"""The NumPy statement of the maths against hand-computed values and its own reductions; the golden files against it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.reference import make_golden
from tests.reference import numpy_perceiver as reference


@pytest.mark.parametrize('name', make_golden.CASES)
def test_golden_files_regenerate(name):
  fresh = make_golden.arrays(name)
  with np.load(make_golden.GOLDEN / f'{name}.npz') as stored:
    assert set(stored.files) == set(fresh)
    for key in stored.files:
      assert stored[key].dtype == fresh[key].dtype
      # Equal bit for bit on the machine that wrote them; another machine's maths library may turn a rounding.
      np.testing.assert_allclose(stored[key], fresh[key], rtol=0, atol=2e-10, err_msg=key)


def test_golden_files_stay_small():
  assert sum(path.stat().st_size for path in make_golden.GOLDEN.glob('*.npz')) < 200_000


def test_activations_at_known_points():
  assert reference.gelu_erf(np.array([1.0]))[0] == pytest.approx(0.8413447460685429, abs=1e-15)
  assert reference.gelu_tanh(np.array([1.0]))[0] == pytest.approx(0.8411919906082768, abs=1e-15)
  assert reference.squared_relu(np.array([-2.0, 3.0])).tolist() == [0.0, 9.0]


def test_layer_norm_divides_by_the_population_deviation():
  parameters = {'scale': np.array([1.0, 1.0]), 'bias': np.array([0.0, 5.0])}
  expected = 1.0 / math.sqrt(1.0 + 1e-5)
  np.testing.assert_allclose(reference.layer_norm(parameters, np.array([3.0, 5.0])), [-expected, 5.0 + expected])


def test_fully_masked_rows_come_out_as_the_output_bias():
  inputs, parameters, outputs = make_golden.load('attention')
  nothing_to_see = ~outputs['mask'].any(axis=-1)
  assert nothing_to_see.sum(axis=1).tolist() == [1, 5]
  assert np.all(outputs['weights'].transpose(0, 2, 1, 3)[nothing_to_see] == 0.0)
  np.testing.assert_allclose(
    outputs['output'][nothing_to_see], np.tile(parameters['output.bias'], (6, 1)), rtol=0, atol=1e-10
  )
  assert (inputs['query_time'][0, 0] < inputs['key_time'][0]).all()


def test_fourier_features_in_order_of_position_sine_cosine():
  features = reference.fourier_features(np.array([[0.5, -1.0]]), 2, (4, 6))[0]
  sines = [math.sin(math.pi * a) for a in (0.5 * 1, 0.5 * 2, -1.0 * 1, -1.0 * 3)]
  cosines = [math.cos(math.pi * a) for a in (0.5 * 1, 0.5 * 2, -1.0 * 1, -1.0 * 3)]
  np.testing.assert_allclose(features, [0.5, -1.0, *sines, *cosines], atol=1e-15)


def test_the_two_grids_differ_at_the_end():
  np.testing.assert_allclose(reference.position_grid((5,))[:, 0], [-1, -0.5, 0, 0.5, 1])
  np.testing.assert_allclose(reference.position_grid((5,), 'subsampled')[:, 0], [-1, -0.6, -0.2, 0.2, 0.6])


@pytest.mark.parametrize('layout', ['interleaved', 'half_split'])
@pytest.mark.parametrize('series', ['standard', 'endpoint'])
def test_rotary_scores_depend_on_the_distance_only(layout, series):
  draw = make_golden.Draw(23)
  q, k = draw.array(1, 1, 6), draw.array(1, 1, 6)

  def score(query_position, key_position):
    turned = [
      reference.rotary(x, np.full((1, 1), p), layout=layout, series=series, fraction=0.7)
      for x, p in ((q, query_position), (k, key_position))
    ]
    return float(turned[0][0, 0] @ turned[1][0, 0])

  assert score(17, 11) == pytest.approx(score(106, 100), abs=1e-9)
  assert score(17, 11) != pytest.approx(score(17, 12), abs=1e-3)


def test_rotary_endpoint_series_ends_at_the_longest_wavelength():
  x, position = np.ones((1, 1, 6)), np.full((1, 1), 100.0)
  turned = reference.rotary(x, position, series='endpoint', max_wavelength=100.0)[0, 0]
  np.testing.assert_allclose(turned[4:], [math.cos(1.0) - math.sin(1.0), math.cos(1.0) + math.sin(1.0)])


def test_unified_with_one_timestep_is_perceiver_io():
  inputs, parameters, outputs = make_golden.load('perceiver_io')
  zeros = np.zeros((2, 13), np.int32)
  latents, time = reference.encode(
    parameters, inputs['inputs'], layers=(0, 1, 0, 1), num_cross_heads=1, num_self_heads=2,
    input_valid=inputs['valid'], input_time=zeros, num_timesteps=1,
  )  # fmt: skip
  decoded = reference.decode(
    parameters, latents, inputs['queries'], num_heads=2, query_residual=True, latent_time=time, query_time=zeros[:, :7]
  )
  np.testing.assert_allclose(decoded, outputs['with_residual'], rtol=0, atol=1e-9)


def test_unified_outputs_know_nothing_later_than_their_time():
  inputs, parameters, _ = make_golden.load('unified')

  def outputs(values):
    latents, time = reference.encode(
      parameters, values, layers=(0, 1), num_cross_heads=1, num_self_heads=2,
      input_valid=inputs['valid'], input_time=inputs['time'], num_timesteps=3,
    )  # fmt: skip
    return reference.decode(
      parameters, latents, inputs['queries'], num_heads=2, query_residual=False,
      latent_time=time, query_time=inputs['query_time'],
    )  # fmt: skip

  last = inputs['time'] == 2
  changed = outputs(np.where(last[..., None], -inputs['inputs'] + 1, inputs['inputs'])) - outputs(inputs['inputs'])
  may_know = inputs['query_time'] >= 2
  assert np.all(changed[~may_know] == 0.0)
  assert np.abs(changed[may_know]).min(axis=-1).max() > 1e-3


def test_perceiver_ar_reads_the_inclusive_past_of_the_last_valid_inputs():
  inputs, parameters, outputs = make_golden.load('perceiver_ar')
  assert outputs['indices'].tolist() == [[8, 9, 10, 11, 12], [3, 4, 5, 6, 7], [-1, -1, 3, 4, 5]]
  settings = {'num_latents': 5, 'layers': (0, 1), 'num_cross_heads': 1, 'num_self_heads': 2}

  def logits(values):
    return reference.perceiver_ar(parameters, values, inputs['valid'], **settings)[0]

  perturbed = inputs['inputs'].copy()
  perturbed[:, 5] += np.linspace(-1, 1, perturbed.shape[-1], dtype=np.float32)
  changed = np.abs(logits(perturbed) - logits(inputs['inputs'])).max(axis=-1) > 1e-6
  assert changed.tolist() == [[True] * 5, [False, False, True, True, True], [False] * 4 + [True]]


def test_a_missing_parameter_is_named():
  with pytest.raises(KeyError, match=r"No parameter below 'encoder'"):
    reference.at({'decoder.output.bias': np.zeros(1)}, 'encoder')
