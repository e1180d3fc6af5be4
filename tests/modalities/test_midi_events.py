"""Notes to events and back, whatever is written."""

from __future__ import annotations

import numpy as np
import pytest

from perceiver_lib.modalities import midi_events


def test_the_vocabulary_has_its_published_places():
  notes = np.array([[0.0, 1.52, 60, 80], [0.0, 0.5, 64, 83], [1.52, 1.6, 60, 2]])
  expected = [356 + 20, 60, 64, 256 + 49, 128 + 64, 256 + 99, 256 + 1, 128 + 60, 356, 60, 256 + 7, 128 + 60]
  assert midi_events.encode(notes).tolist() == expected
  assert (midi_events.VOCABULARY_SIZE, midi_events.PAD) == (389, 388)


def test_notes_come_back_from_their_events():
  random = np.random.default_rng(0)
  pitches = random.permutation(128)[:97]
  onset = random.integers(0, 900, 97)
  end = onset + random.integers(1, 300, 97)
  notes = np.stack([onset / 100, end / 100, pitches, 4 * random.integers(1, 32, 97)], axis=1)
  notes = notes[np.lexsort(notes.T[::-1])]
  ids = midi_events.encode(notes[::-1])
  np.testing.assert_allclose(midi_events.decode([*ids.tolist(), midi_events.PAD]), notes, atol=1e-9)


def test_whatever_is_written_can_be_played_and_written_again():
  ids = np.random.default_rng(1).integers(0, midi_events.VOCABULARY_SIZE, 4001)
  notes = midi_events.decode(ids)
  assert len(notes) > 500 and (notes[:, 1] > notes[:, 0]).all()
  assert midi_events.encode(notes).max() < midi_events.PAD
  assert midi_events.decode([]).shape == midi_events.decode([130, 388]).shape == (0, 4)


def test_what_is_no_note_and_no_event_is_refused():
  for note in ([0, 1, 128, 1], [0, 1, 1, -1], [1, 0.5, 1, 1], [-1, 0.5, 1, 1], [0, np.nan, 1, 1]):
    with pytest.raises(ValueError, match='Notes need 0 <= onset'):
      midi_events.encode(np.array([note], float))
  with pytest.raises(ValueError, match=r'must be in \[0, 388\]; got 5 to 389'):
    midi_events.decode([5, 389])
