"""The short form of `make soak`: a few damaged files of each kind of folder."""

from __future__ import annotations

import random

import pytest

from tests import soak


@pytest.mark.parametrize(('name', 'count'), [('damaged runs', 20), ('damaged checkpoints', 3)])
def test_damage_is_said_or_makes_no_difference(tmp_path, name, count):
  outcomes = list(soak.PARTS[name][0](tmp_path, random.Random(0), count))
  assert len(outcomes) == count and set(outcomes) <= {'same', 'said'}, outcomes


def test_what_is_whole_is_used(tmp_path, monkeypatch):
  monkeypatch.setattr(soak, 'damage', lambda path, chance: 'nothing')
  for number, (name, part) in enumerate(soak.PARTS.items()):
    if name.startswith('damaged'):
      (tmp_path / str(number)).mkdir()
      assert list(part[0](tmp_path / str(number), random.Random(0), 1)) == ['same']
