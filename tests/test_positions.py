from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.positions import FourierFeatures, Rotary, grid, indices, resampled
from tests.reference import make_golden
from tests.support import assert_close


@pytest.mark.parametrize(('end_points', 'name'), [(True, 'endpoints'), (False, 'subsampled')])
def test_golden_grids_and_fourier_features(end_points, name):
  inputs, _, outputs = make_golden.load('positions')
  cells = grid(tuple(inputs['shape'].tolist()), end_points=end_points)
  assert_close(cells, outputs[f'{name}_grid'])
  features = FourierFeatures(num_bands=int(inputs['num_bands']), max_resolution=tuple(inputs['resolution'].tolist()))
  assert features.num_channels == outputs[f'{name}_fourier'].shape[-1]
  # The top angles are around 20 radians, which float32 knows to 1e-6.
  assert_close(features(jnp.asarray(cells)[None])[0], outputs[f'{name}_fourier'], 4e-6)


def test_the_two_grids_differ_by_at_most_two_cells_in_n():
  n = 7
  difference = grid((n,)) - grid((n,), end_points=False)
  assert difference[0, 0] == 0 and difference[-1, 0] == pytest.approx(2 / n)


def test_indices_are_row_major():
  assert indices((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_grid_on_other_cells_is_what_torch_calls_bicubic():
  cells = np.array([[1.0, -2, 4], [0, 3, -1]])
  # torch.nn.functional.interpolate(cells, size=(3, 4), mode='bicubic', align_corners=False)
  expected = [[1.339522, -1.919837, -0.345924, 4.926999], [0.5, 0.390137, 0.860352, 1.571777],
              [-0.339522, 2.700111, 2.066627, -1.783444]]  # fmt: skip
  np.testing.assert_allclose(resampled(cells[..., None], (3, 4))[..., 0], expected, atol=1e-6)
  np.testing.assert_array_equal(resampled(cells[..., None], (2, 3))[..., 0], cells)


def test_fourier_features_of_the_wrong_position():
  features = FourierFeatures(num_bands=3, max_resolution=(8, 8))
  with pytest.raises(ValueError, match=r'over 2 axes need positions \[b, m, 2\]; got shape \(1, 5, 3\)'):
    features(jnp.zeros((1, 5, 3)))


@pytest.mark.parametrize('layout', ['interleaved', 'half'])
@pytest.mark.parametrize('series', ['geometric', 'end_point'])
@pytest.mark.parametrize(('name', 'fraction'), [('whole', 1.0), ('part', 0.6)])
def test_golden_rotary(layout, series, name, fraction):
  inputs, _, outputs = make_golden.load('rotary')
  rotary = Rotary(fraction=fraction, base=8192.0, series=series, layout=layout)
  heads = rotary(jnp.asarray(inputs['x'])[:, None], jnp.asarray(inputs['position'], jnp.int32)[..., None])
  names = {'half': 'half_split', 'geometric': 'standard', 'end_point': 'endpoint'}
  golden = outputs[f'{names.get(layout, layout)}_{names[series]}_{name}']
  assert_close(heads[:, 0], golden, 4e-6)


def test_rotated_products_depend_on_distance_only():
  rotary = Rotary()
  random = np.random.default_rng(0)
  q, k = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

  def product(query_position, key_position):
    at = [jnp.full((1, 1, 1), position, jnp.int32) for position in (query_position, key_position)]
    return jnp.sum(rotary(q, at[0]) * rotary(k, at[1]))

  assert float(product(19, 12)) == pytest.approx(float(product(7, 0)), abs=2e-6)
  assert float(product(19, 12)) != pytest.approx(float(product(19, 13)), abs=1e-3)


def test_too_narrow_heads_are_refused():
  with pytest.raises(ValueError, match='leaves 0 channels to rotate'):
    Rotary(fraction=0.25).check(4)
