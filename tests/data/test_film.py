"""The film is the file described, its sound fits its pictures, and held-out blocks stay apart from training."""

import hashlib

import numpy as np
import pytest

from perceiver_lib.baselines.video import blurred_copy, frame_psnr, prediction_psnr, video_baselines
from perceiver_lib.data import film
from perceiver_lib.data.base import Source

SPLITS = ('train', 'validation', 'test')


@pytest.fixture(scope='module')
def data():
  return film.load(num_frames=5, scale=4)


def test_the_shipped_file_is_the_one_described(data):
  digest = hashlib.sha256(film.path().read_bytes()).hexdigest()
  assert digest == '6fafac50e6a0bf099d2c1bdf881df7e4c1e011ed08fbe9266aecee33c09a7e07' == data.provenance.checksum
  assert digest in film.path().with_name('README.md').read_text()
  assert 'Blender Foundation' in data.provenance.licence
  story = film.read(4)
  assert story.frames.shape == (5870, 16, 28, 3) and story.frames.dtype == np.uint8
  assert len(story.samples) == round(5870 * 16_000 / 12)
  assert np.sqrt(np.mean(story.samples**2)) == pytest.approx(0.036, abs=0.005)


def test_held_out_frames_are_a_clip_away_from_training(data):
  frames = {split: (getattr(data, split).starts[:, None] + np.arange(5)).ravel() for split in SPLITS}
  for one, other in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
    assert np.abs(frames[one][:, None] - frames[other]).min() > 5
  assert frames['train'].max() < film.STORY_FRAMES
  assert len(frames['validation']) == len(frames['test']) == 4 * 240
  assert data.provenance.counts == {f'{split} clips': len(getattr(data, split)) for split in SPLITS}


def test_blocks_cover_the_story_once():
  covered = np.zeros(film.STORY_FRAMES, int)
  for split in SPLITS:
    for first, last in film.runs(split):
      covered[first:last] += 1
  assert (covered == 1).all()
  assert next(film.runs('validation')) == (480, 720) and next(film.runs('test')) == (1200, 1440)


def test_a_clip_is_frames_with_their_sound(data):
  assert isinstance(data.train, Source)
  story = film.read(4)
  clip = data.test[3]
  start = 1200 + 3 * 5
  assert clip['start'] == start
  np.testing.assert_array_equal(clip['frames'], story.frames[start : start + 5])
  assert clip['samples'].shape == (6656,) and 6656 % 16 == 0
  first = round(start * 16_000 / 12)
  np.testing.assert_array_equal(clip['samples'], story.samples[first : first + 6656])
  lengths = {len(data.train[i]['samples']) for i in (0, 1, 2, len(data.train) - 1)}
  assert lengths == {6656}


def test_samples_are_counted_by_time():
  np.testing.assert_array_equal(film.sample_index(np.arange(4)), [0, 1333, 2667, 4000])
  assert film.sample_index(12 * 489) == 489 * 16_000


def test_small_frames_are_averages():
  frames = np.random.default_rng(2).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
  small = film.averaged(frames, 4)
  expected = frames.reshape(3, 2, 4, 3, 4, 3).astype(float).mean((2, 4))
  assert small.shape == (3, 2, 3, 3)
  np.testing.assert_allclose(small, expected, atol=0.5)
  assert film.averaged(frames, 1) is frames


def test_cuts_are_found_and_motion_is_not():
  frames = np.zeros((41, 7, 11, 3), np.uint8)
  for t in range(41):
    frames[t] = 60 + 3 * t if t < 23 else 240 - 3 * t
  frames[23:, :, 5:] = 20
  assert np.flatnonzero(film.find_cuts(frames)).tolist() == [23]
  flicker = np.where(np.arange(41)[:, None, None, None] % 2, 200, 50) * np.ones((1, 7, 11, 3))
  assert not film.find_cuts(flicker.astype(np.uint8)).any()


def test_known_cuts_of_the_film():
  """Looked at by eye: 1352 and 5307 change the scene; 2040 is a fast movement, 5865 the closing iris."""
  cuts = film.read(4).cuts
  assert cuts[[1352, 5041, 5307]].all() and not cuts[[217, 2040, 3180, 5865]].any()
  assert 120 <= cuts.sum() <= 150


def test_the_first_frame_of_a_clip_is_no_cut(data):
  clips = [data.validation[i] for i in range(len(data.validation))]
  assert not any(clip['cuts'][0] for clip in clips)
  assert sum(clip['cuts'].sum() for clip in clips) > 10


def test_copying_is_as_good_as_reported(data):
  found = video_baselines(data.validation)
  assert found['copy last frame'] == pytest.approx((23.9, 27.6, 9.8), abs=0.3)
  assert found['linear extrapolation'].all < found['copy last frame'].all
  assert found['copy last frame'].at_cuts < 12 < found['copy last frame'].within_shots


def test_baselines_of_pictures_that_brighten_steadily():
  ramp = np.broadcast_to(np.arange(0, 70, 10, dtype=np.uint8)[:, None, None, None], (7, 2, 3, 3))
  found = video_baselines([{'frames': ramp, 'cuts': np.zeros(7, bool)}])
  assert found['linear extrapolation'].all == np.inf
  assert found['copy last frame'].all == pytest.approx(10 * np.log10(255**2 / 100))
  assert np.isnan(found['copy last frame'].at_cuts)


def test_a_copy_that_is_not_blurred_is_a_copy_and_of_noise_the_mean_is_the_better_guess():
  random = np.random.default_rng(0)
  cuts = np.array([False, False, False, True])
  clips = [{'frames': random.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), 'cuts': cuts} for _ in range(3)]
  copied = video_baselines(clips)['copy last frame']
  assert blurred_copy(clips, 0.0) == pytest.approx(copied, rel=1e-6)
  assert blurred_copy(clips, 1.0).all > copied.all
  assert prediction_psnr(clips, np.stack([clip['frames'][:-1] for clip in clips])) == pytest.approx(copied, rel=1e-6)


def test_psnr_pools_errors_not_ratios():
  found = frame_psnr(np.array([1.0, 99.0], np.float32), np.array([False, True]))
  assert found == pytest.approx((10 * np.log10(255**2 / 50), 10 * np.log10(255**2), 10 * np.log10(255**2 / 99)))


def test_impossible_requests_are_refused():
  with pytest.raises(ValueError, match='scale must divide'):
    film.read(3)
  with pytest.raises(ValueError, match='1 to 120 frames'):
    film.load(num_frames=121)
  with pytest.raises(ValueError, match='clips of 3 frames'):
    video_baselines([{'frames': np.zeros((2, 2, 2, 3), np.uint8), 'cuts': np.zeros(2, bool)}])
