"""Colours of the Middlebury convention, and figures that show something in every panel."""

import matplotlib
import numpy as np
import pytest

from perceiver_lib.plots.optical_flow import draw_colour_wheel, flow_colours, plot_flow

matplotlib.use('Agg')


@pytest.mark.parametrize(
  'vector, colour',
  [
    ((1, 0), (255, 0, 0)),
    ((0, 1), (255, 230, 0)),
    ((-1, 0), (0, 209, 255)),
    ((0, -1), (88, 0, 255)),
    ((0, 0), (255, 255, 255)),
    ((0.5, 0), (255, 128, 128)),
    ((2, 0), (191, 0, 0)),
  ],
)
def test_directions_have_the_benchmarks_colours(vector, colour):
  shown = flow_colours(np.array(vector, np.float32).reshape(1, 1, 2), largest=1.0)[0, 0]
  np.testing.assert_array_equal(shown, colour)


def test_scale_is_the_largest_valid_motion_and_invalid_is_black():
  flow = np.array([[[2, 0], [1, 0], [np.inf, 0]]], np.float32)
  valid = np.array([[True, True, False]])
  np.testing.assert_array_equal(flow_colours(flow, valid=valid), [[[255, 0, 0], [255, 128, 128], [0, 0, 0]]])
  np.testing.assert_array_equal(flow_colours(np.zeros((2, 3, 2))), 255)


def test_wheel_shows_down_below_the_centre():
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots()
  draw_colour_wheel(axes, '3.0 px')
  image, (left, right, bottom, top) = axes.images[0].get_array(), axes.images[0].get_extent()
  assert left < right and bottom > top
  np.testing.assert_array_equal(image[-1, 100], (255, 230, 0))
  np.testing.assert_array_equal(image[100, -1], (255, 0, 0))
  labels = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
  assert labels['down'][1] > 0 > labels['up'][1] and axes.get_ylim()[0] > axes.get_ylim()[1]
  plt.close(figure)


def test_figure_shows_every_method_and_its_error():
  import matplotlib.pyplot as plt

  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, 17, 23, 3), dtype=np.uint8)
  truth = np.broadcast_to(np.float32([3, 4]), (17, 23, 2)).copy()
  valid = rng.random((17, 23)) < 0.8
  truth[~valid] = np.inf
  figure = plot_flow(frames, truth, {'none': np.zeros((17, 23, 2)), 'right': np.full((17, 23, 2), (3, 0))}, valid=valid)
  figure.canvas.draw()
  titles = [axes.get_title(loc='left') for axes in figure.axes]
  for title in (
    'truth',
    'none',
    'right',
    'error of no motion: 5.00 px',
    'end-point error: 5.00 px',
    'end-point error: 4.00 px',
  ):
    assert title in titles
  plt.close(figure)
