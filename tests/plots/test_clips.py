"""Clips stand where they belong, and a trade-off has a point a seed."""

import numpy as np

from perceiver_lib.plots import clips


def test_a_clip_is_a_row_of_strips_and_spectra():
  videos, sounds = np.zeros((2, 8, 5, 6)), np.zeros((2, 7, 3))
  videos[1, 7, 2, 3] = sounds[1, 6, 2] = 1
  figure = clips.clip_rows({'in': videos, 'word': sounds}, ['a', 'b'], title='Two clips')
  strip, spectrum = (axes.images[0].get_array() for axes in figure.axes[2:])
  assert strip.shape == (5, 4 * 6 + 3) and strip[2, 3 * 7 + 3] == 1 and strip[0, 6] == 1 == strip[:, :6].max() + 1
  assert spectrum.shape == (3, 7) and spectrum[2, 6] == 1
  assert 'word' in figure.alt_text


def test_a_trade_off_goes_through_the_means_of_seeds():
  figure = clips.trade_off(
    {'weight 1': ([20, 22], [30, 50]), 'weight 9': ([10, 10], [80, 90])},
    {'low': (24, 10), 'high': (20, 45)},
    title='Trade',
    x_label='dB',
    y_label='%',
  )
  line, *points = figure.axes[0].lines
  np.testing.assert_array_equal(line.get_xydata(), [[21, 40], [10, 85]])
  assert [len(one.get_xdata()) for one in points] == [2, 2]
