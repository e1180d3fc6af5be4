"""Battles as pictures: who shoots at whom is drawn, and the animation carries all that it shows."""

from __future__ import annotations

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.data.skirmish import ATTACK, STOP, Units
from perceiver_lib.plots import skirmish


@pytest.fixture
def film():
  """A marine shoots at a zealot until that is dead; the second unit of each team is out of reach."""
  health = np.array([[45, 150, 150, 45], [45, 150, 70, 45], [45, 150, 0, 45]], np.float32)
  return {
    'position': np.tile(np.array([[10, 10], [4, 4], [13, 10], [28, 28]], np.float32), (3, 1, 1)),
    'health': health,
    'cooldown': np.zeros((3, 4), np.float32),
    'kind': np.tile(np.array([0, 3, 3, 0]), (3, 1)),
    'team': np.tile(np.array([0, 0, 1, 1]), (3, 1)),
    'orders': np.tile(np.array([ATTACK + 2, ATTACK + 3, STOP, STOP]), (3, 1)),
  }


def test_shots_are_those_that_reach_a_living_foe(film):
  figure = skirmish.stills(film, title='Battle', count=3)
  assert [len(axes.lines) for axes in figure.axes] == [1, 1, 0]
  assert figure.axes[0].lines[0].get_xydata().tolist() == [[10, 10], [13, 10]]
  assert '2 against 1 after 2 orders' in figure.alt_text


def test_an_animation_carries_every_unit_of_every_moment(film):
  page = skirmish.animation(film, title='Battle')
  data = json.loads(re.search(r'const film = (\{.*?\}),', page).group(1))
  assert [frame[8:12] for frame in data['frames']] == [[130, 100, 9, -1], [130, 100, 5, -1], [130, 100, 0, -1]]
  assert [frame[:4] for frame in data['frames']] == [[100, 100, 9, 2], [100, 100, 9, 2], [100, 100, 9, -1]]
  assert data['square'] == [0, 1, 1, 0] and 'http' not in page


def test_reads_are_shaded_by_weight_and_name_the_rank_of_the_marked_foe(film):
  units = Units(**{name: jnp.asarray(film[name][0]) for name in ('position', 'health', 'cooldown', 'kind', 'team')})
  weights = np.array([[0.1, 0.2, 0.4, 0.3]] * 4)
  figure = skirmish.reads(units, weights, [0, 1], np.array([2, 3, 0, 1]), title='Reads')
  assert 'unit 0 reads its marked foe at rank 1 of 4; unit 1 reads its marked foe at rank 2 of 4' in figure.alt_text
