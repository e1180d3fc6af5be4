"""Grouped bars stand beside the baseline of their own group."""

from __future__ import annotations

import pytest

from perceiver_lib.plots.groups import grouped_bars
from tests.support import as_users_call

MEASURED = {'together': {'play': 5.0, 'verse': 80.0}, 'alone': {'play': 4.0, 'verse': 90.0}}
WORDS = {'title': 'Two questions', 'y_label': 'accuracy (%)', 'baseline_label': 'most frequent'}


def test_every_group_has_its_bars_and_a_line_of_its_own():
  figure = grouped_bars(MEASURED, baselines={'play': 3.0, 'verse': 75.0}, **WORDS)
  axes = figure.axes[0]
  assert sorted(bar.get_height() for bar in axes.patches) == [4.0, 5.0, 80.0, 90.0]
  assert sorted(float(line.get_segments()[0][0][1]) for line in axes.collections) == [3.0, 75.0]
  assert 'verse: together 80, alone 90, most frequent 75' in figure.alt_text


def test_a_group_without_a_baseline_is_refused():
  with as_users_call(), pytest.raises(ValueError, match=r"each group that has a baseline, \['play'\]"):
    grouped_bars(MEASURED, baselines={'play': 3.0}, **WORDS)
