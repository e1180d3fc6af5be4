"""Maps over voices and steps draw every panel on one scale, and leave what is exactly zero empty."""

import matplotlib

matplotlib.use('Agg')

import numpy as np
import pytest

from perceiver_lib.plots.voices import voice_maps


def test_zero_is_empty_and_all_panels_share_a_scale():
  one = np.zeros((4, 6))
  one[2, 3] = 1e-3
  figure = voice_maps({'a': one, 'b': 10 * one, 'c': one}, title='Maps', label='size', x_label='step', marks=[(1, 0)])
  images = [axes.images[0] for axes in figure.axes[:3]]
  assert {image.get_clim() for image in images} == {(0, 1e-2)}
  assert images[0].get_array().count() == 1
  assert [text.get_text() for text in figure.axes[0].texts] == ['?']
  assert 'a: tenor 3' in figure.alt_text
  figure.canvas.draw()


@pytest.mark.parametrize('panel', [np.ones((3, 5)), np.zeros((4, 5))])
def test_what_is_no_map_of_four_voices_is_refused(panel):
  with pytest.raises(ValueError, match='matrices'):
    voice_maps({'a': panel}, title='Maps', label='size', x_label='step')
