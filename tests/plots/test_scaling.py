"""Panels of cost and dots of ratios: what is drawn, named and refused."""

from __future__ import annotations

import pytest

from perceiver_lib.plots.scaling import Line, Panel, cost_panels, ratio_dots, size_name


def test_panels_share_names_and_carry_fits_and_rings():
  measured = Line(
    x=[2**10, 2**20], y=[[1.0, 2.0, 3.0], 2_048.0], power=(1.0, 2 / 2**10), fitted_from=2**10, marked=[2**20]
  )
  lines = {'measured': measured, 'expected': Line(x=[2**10, 2**20], y=[1.0, 1_024.0], predicted=True, like='measured')}
  panel = Panel(x_label='bytes', y_label='seconds', lines=lines)
  figure = cost_panels([panel, panel], title='cost')
  first, _ = figure.axes
  assert [label.get_text() for label in first.get_xticklabels()] == ['1k', '1M']
  assert '1.00' in first.texts[0].get_text()
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ['measured', 'expected']
  assert 'measured 2 to 2.05e+03' in figure.alt_text
  figure.canvas.draw()


def test_dots_stand_against_a_reference():
  rows = {'a': {'time': [0.5, 0.4, 0.6], 'memory': [0.25]}, 'b': {'time': [2.0]}}
  figure = ratio_dots(
    rows, title='ratios', x_label='ours / theirs', reference=1.0, reference_label='equal', tie=1.2, log=True
  )
  assert 'a, time 0.50, a, memory 0.25, b, time 2.00' in figure.alt_text
  legend = [text.get_text() for text in figure.legends[0].get_texts()]
  assert set(legend) == {'time', 'memory', 'equal', 'within 1.2x: a tie'}
  figure.canvas.draw()


def test_no_axis_has_a_single_tick():
  for values in ([0.55, 1.2], [0.08, 260_000.0]):
    line = Line(x=[2**10, 2**20], y=values)
    figure = cost_panels([Panel(x_label='bytes', y_label='GB', lines={'measured': line})], title='memory')
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels() if low <= label.get_position()[1] <= high]
    assert ('1' in shown and len(shown) > 1) and not any('e' in text for text in shown)


def test_sizes_are_written_as_people_say_them():
  assert [size_name(size) for size in (64, 2**10, 3 * 2**20, 1_500)] == ['64', '1k', '3M', '1500']


def test_nothing_to_draw_is_refused():
  with pytest.raises(ValueError, match='at least one panel'):
    cost_panels([], title='')
  with pytest.raises(ValueError, match='at least one row'):
    ratio_dots({}, title='', x_label='', reference=1.0, reference_label='')
