"""A file is whole or absent: what writing it does to the one that was there, and to the folder."""

from __future__ import annotations

import pytest

from perceiver_lib.files import replacing


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
  path = tmp_path / 'new' / 'one.txt'
  with replacing(path) as aside:
    aside.write_text('all of it')
    assert not path.exists()
  assert path.read_text() == 'all of it' and list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path):
  path = tmp_path / 'one.txt'
  path.write_text('old')
  with pytest.raises(KeyError), replacing(path) as aside:
    aside.write_text('half')
    raise KeyError
  assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
