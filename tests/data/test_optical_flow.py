"""Truth is exact, splits share no photograph, content depends on seed and index alone, the real pair moves left."""

import dataclasses

import jax
import numpy as np
import pytest

from perceiver_lib.baselines.flow import best_constant
from perceiver_lib.data import _flow_scenes, _photos
from perceiver_lib.data.optical_flow import (
  FlowPairs,
  barber_poles,
  load_optical_flow,
  load_stereo_pair,
  render_scenes,
  two_motions,
)
from perceiver_lib.data.user_files import read_image
from perceiver_lib.modalities.optical_flow import warp
from perceiver_lib.scores.flow import flow_metrics

SIZE = 37


@pytest.fixture(scope='module')
def data_set():
  return load_optical_flow(size=SIZE, train_pairs=2000, held_out_pairs=46, ramp=1000)


@pytest.fixture(scope='module')
def held_out(data_set):
  return {name: np.asarray(value) for name, value in data_set.test.batch(0, 46).items()}


def bilinear(image, points):
  """Restated in NumPy: `points` (x, y) inside the image."""
  corner = np.minimum(np.floor(points).astype(int), np.array(image.shape[1::-1]) - 2)
  (x, y), (right, down) = np.moveaxis(corner, -1, 0), np.moveaxis(points - corner, -1, 0)[..., None]
  above = image[y, x] * (1 - right) + image[y, x + 1] * right
  below = image[y + 1, x] * (1 - right) + image[y + 1, x + 1] * right
  return above * (1 - down) + below * down


def grid(size=SIZE):
  return np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float64)


def background_only(monkeypatch, number, *, severity=1.0, augment=False):
  """One scene without patches; the compiled function would remember their number."""
  monkeypatch.setattr(_flow_scenes, 'NUM_PATCHES', 0)
  atlas = _photos.shipped_atlas('test', SIZE + 24)
  key = jax.random.fold_in(jax.random.key(11), number)
  scene = _flow_scenes._scene(key, jax.numpy.float32(severity), atlas, size=SIZE, augment=augment)
  return {name: np.asarray(value, np.float64) for name, value in scene.items()}


@pytest.mark.parametrize('number', range(5))
def test_first_frame_is_the_second_where_the_flow_points(monkeypatch, number):
  scene = background_only(monkeypatch, number)
  frames, flow, inside = scene['frames'][0], scene['flow'][0], scene['occluded'][0] == 0
  assert inside.mean() > 0.3
  error = np.abs(bilinear(frames[1], np.clip(grid() + flow, 0, SIZE - 1)) - frames[0])[inside]
  still = np.abs(frames[1] - frames[0])[inside]
  assert error.max() < 0.05  # of 255: float32 rounding of the coordinates
  assert still.mean() > 5


@pytest.mark.parametrize('number', range(5))
def test_there_and_back_again(monkeypatch, number):
  scene = background_only(monkeypatch, number)
  forward, backward = scene['flow']
  inside = scene['occluded'][0] == 0
  returned = bilinear(backward, np.clip(grid() + forward, 0, SIZE - 1))
  # The inverse is exact to 0.01 pixel at pixels; interpolating it between them costs a little more.
  assert np.abs(returned + forward)[inside].max() < 0.02


def test_background_motion_is_inverted_exactly():
  uniform = jax.random.uniform(jax.random.key(3), (sum(_flow_scenes._LAYER_SIZES),))
  # The strongest waves, parallel, are the hardest to invert.
  layer = _flow_scenes._layer(uniform)._replace(waves=jax.numpy.array([[1.0, 0.2, 0.0, 0.2, 0.3]] * 2))
  motion = _flow_scenes._Motion(layer, size=SIZE, severity=jax.numpy.float32(1), wavy=True)
  points = jax.numpy.asarray(grid(), np.float32)
  assert np.abs(motion(motion.inverse(points)) - points).max() < 0.01


def test_patches_move_with_their_own_exact_flow(held_out):
  """Pairs with patches: away from edges, which blend two layers, every visible pixel is found again."""
  frames, flow, occluded = (held_out[name].astype(np.float64) for name in ('frames', 'flow', 'occluded'))
  matched, patches = [], 0
  for pair in range(0, 46, 2):
    spread = np.zeros((SIZE, SIZE))
    for axis in (0, 1):
      for shift in (-4, -2, -1, 1, 2, 4):
        for field in (flow[pair], flow[pair + 1]):
          other = np.roll(field, shift, axis)
          spread = np.maximum(spread, np.linalg.norm(other - field, axis=-1) / abs(shift))
    edges = bilinear((spread > 0.35)[..., None].astype(float), np.clip(grid() + flow[pair], 0, SIZE - 1))[..., 0]
    clear = (occluded[pair] == 0) & (edges == 0) & (spread <= 0.35)
    patches += (spread > 0.35).sum() > 4 * SIZE * 4
    error = np.abs(bilinear(frames[pair, 1], np.clip(grid() + flow[pair], 0, SIZE - 1)) - frames[pair, 0]).max(-1)
    matched.append((error < 0.1)[clear].mean())
  assert patches > 5
  assert np.mean(matched) > 0.99


# Reversed, the second frame is the interpolated one, so visible pixels match less well.
@pytest.mark.parametrize('direction, ratio', [(0, 30), (1, 10)])
def test_occluded_pixels_do_not_match_and_visible_ones_do(held_out, direction, ratio):
  frames, flow, occluded = (held_out[name][direction::2] for name in ('frames', 'flow', 'occluded'))
  warped = np.stack([warp(second, field) for second, field in zip(frames[:, 1], flow, strict=True)])
  error = np.abs(warped - frames[:, 0]).mean(-1)
  inside = ((grid() + flow >= 0) & (grid() + flow <= SIZE - 1)).all(-1)
  hidden = occluded & inside
  assert hidden.mean() > 0.01
  assert error[hidden].mean() > ratio * error[~occluded].mean()


def test_odd_pairs_are_even_pairs_reversed(held_out):
  np.testing.assert_array_equal(held_out['frames'][1::2], held_out['frames'][::2, ::-1])
  assert np.abs(held_out['flow'][1::2] + held_out['flow'][::2]).mean() < 0.3 * np.abs(held_out['flow']).mean()


def test_content_is_a_function_of_seed_and_index(data_set):
  train = data_set.train
  batch = train.batch(12, 6)
  again = load_optical_flow(size=SIZE, train_pairs=2000, held_out_pairs=46, ramp=1000).train.batch(14, 4)
  for index in (15, 16):
    for name in ('frames', 'flow', 'occluded'):
      # A batch of another size may be compiled to another order of additions.
      np.testing.assert_allclose(train[index][name], batch[name][index - 12], atol=1e-2)
      np.testing.assert_allclose(again[name][index - 14], batch[name][index - 12], atol=1e-2)
  other = FlowPairs(atlas=train.atlas, seed=1, length=2000, size=SIZE, augment=True)
  assert np.abs(other[15]['frames'] - train[15]['frames']).mean() > 5
  np.testing.assert_array_equal(train.batch(2000, 2)['flow'], train.batch(0, 2)['flow'])


def test_batches_start_anywhere(data_set):
  for steps, start in ((3, 0), (1, 2)):
    stream = data_set.train.batches(4, start_step=start)
    batch = [next(stream) for _ in range(steps)][-1]
    np.testing.assert_array_equal(batch['flow'], data_set.train.batch(8, 4)['flow'])


def test_single_pairs_are_those_of_a_batch(data_set, held_out):
  for index in (5, 0, 45):
    example = data_set.test[index]
    np.testing.assert_allclose(example['frames'], held_out['frames'][index], atol=1e-2)
    assert (example['occluded'] != held_out['occluded'][index]).mean() < 1e-3


def test_held_out_scenes_do_not_depend_on_the_seed(data_set):
  other = load_optical_flow(size=SIZE, seed=5, train_pairs=2000, held_out_pairs=46)
  np.testing.assert_array_equal(other.test[3]['flow'], data_set.test[3]['flow'])
  assert np.abs(other.train[3]['flow'] - data_set.train[3]['flow']).mean() > 0.1


def test_no_photograph_is_in_two_splits():
  names = [name for split in _photos.SPLITS.values() for name in split]
  assert len(names) == len(set(names)) == 15
  assert not any('motorcycle' in name for name in names)
  pixels = {
    split: {read_image(_photos.photo_path(name)).tobytes() for name in names} for split, names in _photos.SPLITS.items()
  }
  assert not pixels['train'] & pixels['test'] and not pixels['train'] & pixels['validation']


def test_motion_grows_and_covers_the_real_pair(data_set):
  scenes = np.arange(200, dtype=np.int32)
  lengths, variety = {}, {}
  for severity in (0.0, 1.0):
    pairs = render_scenes(
      data_set.train.atlas, jax.random.key(0), scenes, np.full(200, severity, np.float32), size=SIZE, augment=True
    )
    lengths[severity] = np.linalg.norm(pairs['flow'], axis=-1)
    variety[severity] = np.ptp(pairs['flow'], axis=(2, 3)).max((1, 2))
  np.testing.assert_allclose(lengths[1.0].mean() / lengths[0.0].mean(), 2, rtol=0.1)
  assert variety[0.0].max() < 1e-4 < 1 < np.median(variety[1.0])
  assert np.quantile(lengths[1.0], 0.95) > 7.49 and np.quantile(lengths[1.0], 0.05) < 0.92
  np.testing.assert_array_equal(data_set.train.severity(np.array([0, 500, 1000, 1999])), [0, 0.5, 1, 1])
  assert data_set.test.severity(0) == 1
  easier = dataclasses.replace(data_set.train, max_severity=0.5)
  np.testing.assert_array_equal(easier.severity(np.array([0, 500, 1999])), [0, 0.25, 0.5])


def test_colours_vary_only_in_the_second_half_of_the_ramp(monkeypatch):
  plain = background_only(monkeypatch, 1, severity=0.5, augment=False)
  turned = background_only(monkeypatch, 4, severity=0.5, augment=True)
  inside = turned['occluded'][0] == 0
  warped = bilinear(turned['frames'][0, 1], np.clip(grid() + turned['flow'][0], 0, SIZE - 1))
  assert np.abs(warped - turned['frames'][0, 0])[inside].max() < 0.05
  assert (plain['frames'][0, 1] == np.rint(plain['frames'][0, 1])).all()
  recoloured = background_only(monkeypatch, 4, severity=1.0, augment=True)
  assert np.abs(recoloured['frames'][0, 1] - turned['frames'][0, 1]).mean() > 5


def test_augmenting_turns_textures_and_nothing_else_does(monkeypatch):
  plain = background_only(monkeypatch, 2, severity=0.0, augment=False)
  turned = background_only(monkeypatch, 2, severity=0.0, augment=True)
  np.testing.assert_array_equal(plain['flow'], turned['flow'])
  assert np.abs(plain['frames'] - turned['frames']).mean() > 5


def test_provenance_says_what_is_real(data_set):
  text = str(data_set.provenance)
  assert data_set.provenance.kind == 'synthetic' and 'real photographs' in text and 'china.jpg' in text
  assert data_set.provenance.counts == {'train': 2000, 'validation': 46, 'test': 46}
  assert len(data_set.train) == 2000 and len(data_set.validation) == 46
  assert len(data_set.provenance.checksum) == 64


def test_stereo_pair_moves_left():
  pair, provenance = load_stereo_pair(scale=1)
  assert pair['frames'].shape == (2, 500, 741, 3) and provenance.kind == 'real'
  left, right = pair['frames'].mean(-1, keepdims=True) / 255
  np.testing.assert_allclose(pair['valid'].mean(), 0.927, atol=1e-3)
  inside = pair['valid'] & (np.arange(741) + pair['flow'][..., 0] >= 0)
  error = {sign: np.abs(warp(right, np.float32(sign) * pair['flow']) - left)[inside].mean() for sign in (1, 0, -1)}
  # Grey levels of 1: the right sign, no motion, the wrong sign.
  np.testing.assert_allclose([error[1], error[0], error[-1]], [0.029, 0.147, 0.175], atol=0.002)


@pytest.mark.parametrize('scale, zero, constant', [(8, 4.29, 1.84), (4, 8.60, 3.70), (1, 34.34, 14.79)])
def test_stereo_pair_against_constant_flows(scale, zero, constant):
  pair, _ = load_stereo_pair(scale=scale)
  assert pair['frames'].shape[1:3] == pair['valid'].shape == (500 // scale, 741 // scale)
  assert np.isfinite(pair['flow']).all() and (pair['flow'][~pair['valid']] == 0).all()
  moving = pair['flow'][pair['valid']]
  assert (moving[:, 0] < -7.1 / scale).all() and (moving[:, 1] == 0).all()
  measured = flow_metrics(np.zeros(2, np.float32), pair['flow'], pair['valid'])['epe']
  np.testing.assert_allclose(measured, zero, atol=0.01)
  best = best_constant(pair['flow'], pair['valid'])
  np.testing.assert_allclose(flow_metrics(best, pair['flow'], pair['valid'])['epe'], constant, atol=0.01)


@pytest.mark.parametrize(
  'arguments, words',
  [
    ({'size': 7}, 'size 7'),
    ({'train_pairs': 5}, '5 training'),
    ({'size': 300}, '324'),
    ({'max_severity': 1.5}, 'got 1.5'),
  ],
)
def test_bad_requests_are_refused(arguments, words):
  with pytest.raises(ValueError, match=words):
    load_optical_flow(**arguments)


def test_bad_indices_and_scales_are_refused(data_set):
  with pytest.raises(IndexError, match='0 to 45'):
    data_set.test[46]
  with pytest.raises(ValueError, match='even'):
    data_set.test.batch(1, 4)
  with pytest.raises(ValueError, match='got 0'):
    load_stereo_pair(scale=0)


def test_two_motions_have_one_shift_each():
  pairs = load_optical_flow(size=16, held_out_pairs=16).validation
  batch = next(two_motions(pairs, 4))
  flow = np.asarray(batch['flow'])
  assert batch['frames'].shape == (4, 2, 16, 16, 3) and flow.shape == (4, 16, 16, 2)
  for half in (flow[:, :, :8], flow[:, :, 8:]):
    np.testing.assert_allclose(half, np.broadcast_to(half[:, :1, :1], half.shape), atol=1e-4)
  assert (np.abs(flow[:, 0, 0] - flow[:, 0, -1]).max(1) > 0.1).all()


def test_barber_poles_move_behind_their_windows():
  batch = jax.device_get(next(barber_poles(3, size=16, cells=2, seed=1)))
  frames, motion, normal = batch['frames'][..., 0], batch['flow'], batch['normal']
  np.testing.assert_array_equal(motion, np.broadcast_to(motion[:, :1, :1], motion.shape))
  assert (np.linalg.norm(motion, axis=-1) <= 2.5).all() and len(np.unique(motion)) == 6
  # No change along the stripes, and the brightness goes with the motion: one equation a window, not two.
  inside = (slice(None), slice(1, 7), slice(1, 7))
  down, right = np.gradient(frames.mean(1), axis=(1, 2))
  slope = np.stack([right, down], -1)[inside]
  along = (slope * normal[inside][..., ::-1] * (1, -1)).sum(-1)
  assert np.abs(along).mean() < 0.05 * np.abs(slope).mean()
  change = (frames[:, 1] - frames[:, 0])[inside] + (slope * motion[inside]).sum(-1)
  assert np.abs(change).mean() < 0.2 * np.abs((frames[:, 1] - frames[:, 0])[inside]).mean()
  with pytest.raises(ValueError, match='divide'):
    next(barber_poles(3, size=16, cells=3))
