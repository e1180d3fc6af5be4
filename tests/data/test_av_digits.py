"""Clips are what they say: a whole digit that moves in its frame, a word of a held-out voice in noise of a level."""

import numpy as np
import pytest

from perceiver_lib.data import av_digits
from perceiver_lib.data.base import sha256

RANDOM = np.random.default_rng(3)


def test_every_word_has_one_loudness_and_is_the_one_described():
  sounds = av_digits.spoken_digits()
  assert sounds.shape == (86, 10, 4096) and sounds.dtype == np.int8
  assert sha256([sounds]) == '9ae1bf67c0e617deb615bb61622a46bdc5efb393d6a3191c3404fbbdef92d970'
  power = np.square(sounds.astype(np.float32) / 127).sum(-1)
  lengths = 4096 - (sounds[..., ::-1] != 0).argmax(-1)
  assert np.sqrt(power / lengths) == pytest.approx(av_digits.LOUDNESS, rel=0.1)


def test_a_tone_is_loudest_in_its_band_while_it_lasts():
  tone = np.zeros((1, 4096))
  tone[:, 1024:2048] = np.sin(2 * np.pi * 1_062.5 * np.arange(1024) / av_digits.SAMPLES_PER_SECOND)
  [found] = av_digits.spectrum(tone)
  assert found.shape == (32, 32)
  assert (found[8:15].argmax(1) == 8).all()
  assert np.ptp(found[17:]) == 0 and found[10].max() > found[20].max() + 2


def test_digits_move_whole_and_stay_inside():
  digits = RANDOM.integers(1, 256, (5, 12, 12), dtype=np.uint8)
  frames = av_digits.moving(digits, RANDOM)
  assert frames.shape == (5, 8, 16, 16)
  for clip, digit in zip(frames, digits, strict=True):
    corners = [np.argwhere(frame)[0] for frame in clip]
    for frame, (y, x) in zip(clip, corners, strict=True):
      np.testing.assert_array_equal(np.rint(255 * frame[y : y + 12, x : x + 12]), digit)
      assert (frame > 0).sum() == 144
    assert 0 < np.abs(np.diff(corners, axis=0)).max() <= 1


def test_splits_share_no_voice_and_noise_has_its_level():
  pictures = {'image': np.zeros((600, 12, 12), np.uint8), 'label': np.arange(600) % 10}
  parts = {}
  for split in ('train', 'validation', 'test'):
    clips = av_digits.clips_of(split, noise_db=-3.0)(pictures, np.random.default_rng(0))
    parts[split] = {sound.tobytes() for sound in clips['sound']}
    assert (clips['noisy'].mean() > clips['sound'].mean() + 1) and clips['label'].dtype == np.int32
  assert not parts['train'] & parts['validation'] and not parts['train'] & parts['test']
  assert len(parts['test']) <= 140 < len(parts['train'])
  quiet = av_digits.clips_of('test', noise_db=200.0)(pictures, np.random.default_rng(0))
  np.testing.assert_allclose(quiet['noisy'], quiet['sound'], atol=1e-3)
