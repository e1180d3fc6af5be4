"""Chorales are read note for note, lie on the grid that the documentation says, and no tune is in two splits."""

import zipfile

import numpy as np
import pytest

from perceiver_lib.data import chorales

SPLITS = ('train', 'validation', 'test')
CONTAINER = '<container><rootfiles><rootfile full-path="a.xml"/></rootfiles></container>'


def note(step, octave, duration, alter=0, extra=''):
  pitch = f'<pitch><step>{step}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>'
  return f'<note>{pitch}<duration>{duration}</duration>{extra}</note>'


PART = (
  '<part><measure><attributes><divisions>4</divisions><time><beats>3</beats><beat-type>4</beat-type></time></attributes>'
  + note('A', 4, 4)
  + '</measure><measure>'
  + note('C', 5, 2, alter=1)
  + '<note><grace/><pitch><step>D</step><octave>5</octave></pitch></note>'
  + note('B', 4, 1)
  + note('B', 4, 1)
  + '<note><rest/><duration>4</duration></note>'
  + note('G', 4, 4, extra='<tie type="start"/>')
  + '</measure><measure>'
  + note('G', 4, 8, extra='<tie type="stop"/>')
  + '<forward><duration>4</duration></forward></measure></part>'
)


@pytest.fixture
def piece(tmp_path):
  path = tmp_path / 'small.mxl'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('META-INF/container.xml', CONTAINER)
    archive.writestr('a.xml', f'<score-partwise>{PART * 4}</score-partwise>')
  return chorales.parse(path)


def test_notes_are_those_written_with_ties_joined(piece):
  np.testing.assert_array_equal(
    piece.voices[0], [[0, 1, 69], [1, 0.5, 73], [1.5, 0.25, 71], [1.75, 0.25, 71], [3, 3, 67]]
  )
  assert piece.length == 7
  assert piece.bars == ((1.0, 3.0),)
  assert piece.intervals == (4, -2, 0, -4)


def test_the_grid_says_what_sounds_what_begins_and_where_the_bar_is(piece):
  pitch, onset, in_bar = chorales.on_grid(piece, 2)
  # The second sixteenth B falls between eighths and is left out.
  assert pitch[:, 3].tolist() == [69, 69, 73, 71, -1, -1, 67, 67, 67, 67, 67, 67, -1, -1]
  assert np.flatnonzero(onset[:, 0]).tolist() == [0, 2, 3, 6]
  assert in_bar.tolist() == [4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
  assert chorales.on_grid(piece, 4)[1][:, 0].sum() == 5


@pytest.fixture(scope='module')
def data():
  return chorales.load()


def test_all_four_part_pieces_are_read(data):
  pieces = chorales.read()
  assert len(pieces) == 364
  assert sum(len(voice) for piece in pieces for voice in piece.voices) == 84_737
  means = np.array([[voice[:, 2].mean() for voice in piece.voices] for piece in pieces])
  assert (np.diff(means, axis=1) < 0).all()
  assert sum(data.provenance.counts.values()) == 364
  assert 'music21' in data.provenance.source


def test_no_tune_is_in_two_splits(data):
  by_name = {piece.name: piece for piece in chorales.read()}
  incipits, runs = {}, {}
  for split in SPLITS:
    intervals = [by_name[name].intervals for name in getattr(data, split).names]
    incipits[split] = {row[: chorales.INCIPIT_INTERVALS] for row in intervals}
    length = chorales.SHARED_INTERVALS
    runs[split] = {row[i : i + length] for row in intervals for i in range(len(row) - length + 1)}
  for one, other in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
    assert not incipits[one] & incipits[other]
    assert not runs[one] & runs[other]


def test_a_split_holds_its_share_of_the_pieces(data):
  shares = [len(getattr(data, split)) / 364 for split in SPLITS]
  np.testing.assert_allclose(shares, [0.75, 0.10, 0.15], atol=0.03)


def test_padding_is_silent(data):
  arrays = data.validation.arrays
  behind = np.arange(arrays['pitch'].shape[1]) >= arrays['num_steps'][:, None]
  assert behind.any() and (arrays['pitch'][behind] == chorales.REST).all() and not arrays['onset'][behind].any()
  assert (arrays['pitch'][~behind] > 0).mean() > 0.98


def test_tunes_are_found_in_any_key():
  def piece(name, pitches):
    voice = np.stack([np.arange(len(pitches)), np.ones(len(pitches)), pitches], 1).astype(float)
    return chorales.Chorale(name=name, voices=(voice,), length=len(pitches), bars=((0.0, 4.0),))

  melody = np.random.default_rng(3).integers(60, 80, 31)
  later = np.concatenate([[62, 60, 61], melody[2:] + 4])
  other = np.random.default_rng(4).integers(60, 80, 31)
  pieces = [piece('b', melody), piece('c', melody[:13] - 3), piece('a', later), piece('d', other)]
  assert chorales.tunes(pieces) == {'b': 'a', 'c': 'a', 'a': 'a', 'd': 'd'}


def test_a_grid_without_steps_is_refused():
  with pytest.raises(ValueError, match='one or more steps a quarter note; got 0'):
    chorales.load(steps_per_quarter=0)
