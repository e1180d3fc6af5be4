from __future__ import annotations

import numpy as np

from perceiver_lib.plots.alignment import alignment_figure


def test_each_output_is_marked_at_the_source_it_rests_on_most():
  values = np.array([[2.0, 0.1, -0.5], [0.0, 0.3, 1.0]])
  figure = alignment_figure([('cat', ['K', 'T'], values)], title='Alignment', label='nats')
  assert figure.alt_text == 'Alignment. What each phoneme rests on most, cat: K by c, T by t.'
  axes, bar = figure.axes
  assert [text.get_text() for text in axes.get_xticklabels()] == ['c', 'a', 't']
  assert axes.collections[0].get_offsets().tolist() == [[0.0, 0.0], [2.0, 1.0]]
  assert bar.get_ylabel() == 'nats'
