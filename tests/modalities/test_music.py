"""Scores become tokens and come back; windows score every token once; files hold the notes that were written."""

import wave

import mido
import numpy as np
import pytest

from perceiver_lib.baselines.music import MusicCounts
from perceiver_lib.data import chorales, training_batches
from perceiver_lib.modalities import music, music_files


@pytest.fixture(scope='module')
def data():
  return chorales.load()


def small(num_steps=(5, 3)):
  """Pieces in which no two ids are equal."""
  t = max(num_steps)
  pitch = np.arange(33, 33 + t * 4).reshape(1, t, 4).repeat(len(num_steps), 0).astype(np.int16)
  onset = np.arange(t * 4).reshape(1, t, 4).repeat(len(num_steps), 0) % 3 > 0
  behind = np.arange(t) >= np.array(num_steps)[:, None]
  pitch[behind], onset[behind] = -1, False
  in_bar = np.broadcast_to((np.arange(t) + 2) % 3, (len(num_steps), t)).astype(np.int16)
  return {'pitch': pitch, 'onset': onset, 'step_in_bar': in_bar, 'num_steps': np.array(num_steps, np.int32)}


def test_ids_and_pitches_are_inverse(data):
  arrays = data.validation.arrays
  ids = music.encode(arrays['pitch'], arrays['onset'])
  assert ids[ids > music.REST].min() >= music.NUM_SPECIAL + 5 and ids.max() < music.VOCABULARY_SIZE - 5
  pitch, onset = music.decode(ids)
  np.testing.assert_array_equal(pitch, arrays['pitch'])
  np.testing.assert_array_equal(onset, arrays['onset'])


def test_ids_of_a_hand_written_bar():
  ids = music.encode(np.array([31, 31, -1, 86, 86]), np.array([True, False, False, True, False]))
  assert ids.tolist() == [4, 60, 3, 59, 115]
  assert music.held(ids).tolist() == [60, 60, 3, 115, 115]
  assert music.transpose(np.array([0, 1, 2, 3, 4, 60]), 3).tolist() == [0, 1, 2, 3, 7, 63]


def test_out_of_range_pitches_and_ids_are_refused():
  with pytest.raises(ValueError, match='must be 31 to 86, or -1; got 30'):
    music.encode(np.array([30]), np.array([True]))
  with pytest.raises(ValueError, match=r'in \[0, 116\); got 116'):
    music.decode(np.array([116]))
  with pytest.raises(ValueError, match='must be 31 to 86'):
    music.transpose(np.array([59]), 1)


def test_a_score_begins_with_start_and_ends_with_one_scored_end():
  whole = music.score(small())
  assert whole['ids'][1, :, 0].tolist() == [1, *music.encode(small()['pitch'], small()['onset'])[1, :3, 0], 2, 0, 0]
  assert whole['step_in_bar'][1].tolist() == [0, 2, 0, 1, 0, 0, 0]
  assert whole['scored'].sum() == (5 + 3) * 4 + 2
  assert whole['scored'][0, 6].tolist() == [True, False, False, False]


def test_orders_put_every_id_where_its_position_says():
  whole = music.score(small())
  for order in ('interleaved', 'soprano_first'):
    batch = music.tokens(whole, order)
    step, voice, in_bar = np.moveaxis(batch['position'], -1, 0)
    row = np.arange(2)[:, None]
    np.testing.assert_array_equal(batch['ids'], whole['ids'][row, step, voice])
    np.testing.assert_array_equal(in_bar, whole['step_in_bar'][row, step])
    np.testing.assert_array_equal(music.grid_of(batch['ids'], order), whole['ids'])
    np.testing.assert_array_equal(batch['valid'], batch['ids'] != music.PAD)
    np.testing.assert_array_equal(
      batch['scored'], whole['scored'][row, step, voice] & ((voice > 0) | (order[0] == 'i'))
    )
    if order == 'soprano_first':
      assert (voice[:, :7] == 0).all() and voice[0, 7:13].tolist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize('order', ['interleaved', 'soprano_first'])
@pytest.mark.parametrize(('num_steps', 'stride'), [(13, 5), (7, 6), (29, 1)])
def test_every_token_is_scored_once(order, num_steps, stride):
  pieces = small((11, 13, 3))
  windows = music.evaluation_windows(pieces, num_steps, stride=stride, order=order)
  # No window scores a token that nothing stands before, and none ends behind what it scores.
  assert not windows['scored'][:, 0].any()
  index = np.arange(4 * num_steps)
  last_scored, last_valid = (np.where(windows[name], index, -1).max(1) for name in ('scored', 'valid'))
  np.testing.assert_array_equal(last_valid, last_scored)
  seen = np.concatenate([windows['piece'][:, None, None].repeat(4 * num_steps, 1), windows['position'][..., :2]], -1)
  expected = music.tokens(music.score(pieces), order)
  rows = np.arange(3)[:, None, None].repeat(expected['ids'].shape[1], 1)
  wanted = np.concatenate([rows, expected['position'][..., :2]], -1)[expected['scored']]
  np.testing.assert_array_equal(sorted(seen[windows['scored']].tolist()), sorted(wanted.tolist()))


def test_a_stride_as_long_as_the_window_is_refused():
  with pytest.raises(ValueError, match='1 to num_steps - 1 = 6; got 7'):
    music.evaluation_windows(small(), 7, stride=7)


def test_training_windows_are_parts_of_their_piece_in_another_key(data):
  transform = music.training_windows(31)
  [batch] = [next(training_batches(data.train, 17, seed=3, transform=transform))]
  again = next(training_batches(data.train, 17, seed=3, transform=transform))
  np.testing.assert_array_equal(batch['ids'], again['ids'])
  assert batch['ids'].shape == (17, 124)
  plain = next(training_batches(data.train, 17, seed=3, transform=music.training_windows(31, max_transposition=0)))
  np.testing.assert_array_equal(batch['position'], plain['position'])
  shifts = set()
  for moved, original in zip(batch['ids'], plain['ids'], strict=True):
    special = original < music.NUM_SPECIAL
    np.testing.assert_array_equal(moved[special], original[special])
    [shift] = set((moved - original)[~special].tolist())
    shifts.add(shift)
  assert len(shifts) > 3 and max(map(abs, shifts)) <= 5
  # Windows reach no further than END, so only short pieces leave padding.
  ends = (batch['ids'] == music.END).any(1)
  assert batch['valid'][~ends].all()


def test_notes_come_back_from_ids_and_stray_holds_are_played():
  begin, hold = 4 + 60 - 31, 60 + 60 - 31
  soprano = [1, begin, hold, begin, 3, hold, hold + 2, 2, begin]
  ids = np.stack([soprano, [3] * 9, [1] * 9, [begin] * 9], 1)
  notes = music.to_notes(ids)
  assert notes[0].tolist() == [[1, 2, 60], [3, 1, 60], [5, 1, 60], [6, 1, 62]]
  assert notes[1].shape == notes[2].shape == (0, 3)
  assert len(notes[3]) == 7
  assert [len(voice) for voice in music.to_notes(ids[:0])] == [0, 0, 0, 0]


def test_grid_notes_are_those_of_the_piece():
  piece = next(piece for piece in chorales.read() if piece.name == 'bwv269')
  pitch, onset, _ = chorales.on_grid(piece, 4)
  for notes, written in zip(music.to_notes(music.encode(pitch, onset)), piece.voices, strict=True):
    np.testing.assert_array_equal(notes, written * [4, 4, 1])


def test_the_midi_file_holds_the_notes(tmp_path):
  notes = [np.array([[0, 2, 60], [2, 1, 60]]), np.array([[1, 3, 55]]), np.zeros((0, 3), int), np.array([[0, 4, 40]])]
  music_files.write_midi(tmp_path / 'a.mid', notes, steps_per_quarter=2, quarters_per_minute=90)
  file = mido.MidiFile(tmp_path / 'a.mid')
  assert file.type == 1 and len(file.tracks) == 5
  # The format keeps whole microseconds a quarter note.
  np.testing.assert_allclose(file.length, 4 / 2 * 60 / 90, rtol=1e-6)
  time, events = 0, []
  for message in file.tracks[1]:
    time += message.time
    if message.type.startswith('note'):
      events.append((time, message.type, message.note))
  assert events == [(0, 'note_on', 60), (480, 'note_off', 60), (480, 'note_on', 60), (720, 'note_off', 60)]


def test_the_sound_has_the_pitch_and_length_of_the_note(tmp_path):
  sound = music_files.render([np.array([[2, 4, 69]])], steps_per_quarter=2, quarters_per_minute=60, sample_rate=8000)
  assert len(sound) == pytest.approx(8000 * 3.05, abs=3)
  assert np.abs(sound[:8000]).max() == 0 and np.abs(sound).max() == pytest.approx(0.9)
  spectrum = np.abs(np.fft.rfft(sound[8000:16000]))
  assert spectrum.argmax() == 440
  music_files.write_wav(tmp_path / 'a.wav', sound, sample_rate=8000)
  with wave.open(str(tmp_path / 'a.wav')) as file:
    assert file.getframerate() == 8000 and file.getnframes() == len(sound)
    np.testing.assert_allclose(np.frombuffer(file.readframes(len(sound)), '<i2') / 32767, sound, atol=2e-5)


def test_silence_is_no_sound():
  with pytest.raises(ValueError, match='no note to render'):
    music_files.render([np.zeros((0, 3), int)] * 4)


def test_baselines_of_a_piece_that_never_changes():
  pitch = np.broadcast_to(np.array([70, 65, 60, 50], np.int16), (1, 101, 4))
  onset = np.zeros((1, 101, 4), bool)
  onset[:, 0] = True
  piece = {'pitch': pitch, 'onset': onset, 'step_in_bar': np.zeros((1, 101), np.int16), 'num_steps': np.array([101])}
  counts = MusicCounts(piece)
  found = counts.scores(piece)
  # 4 first notes and the END are missed by copying.
  assert found['copy'].accuracy == pytest.approx(400 / 405)
  assert found['bigram'].nats_per_token < found['unigram'].nats_per_token / 2
  assert counts.scores(piece, harmony_only=True)['copy'].accuracy == pytest.approx(300 / 303)


def test_the_chord_count_hears_what_is_written_before_and_nothing_later():
  """Alto and soprano are random, and the tenor sings what the alto sings, an octave lower."""
  random, t = np.random.default_rng(0), 800
  pitch = np.stack([random.integers(70, 76, t), random.integers(60, 66, t), np.zeros(t), np.full(t, 45)], axis=-1)
  pitch[:, 2] = pitch[:, 1] - 12
  whole = {'pitch': pitch.astype(np.int16), 'onset': np.ones((t, 4), bool), 'step_in_bar': np.zeros(t, np.int16)}
  train, new = ({name: array[part][None] for name, array in whole.items()} for part in (slice(700), slice(700, t)))
  found = MusicCounts(train | {'num_steps': np.array([700])}).scores(new | {'num_steps': np.array([100])})
  # Two voices are known and two have six notes, (2 + 2 / 6) / 4; without ears it is one and three.
  assert found['chord'].accuracy == pytest.approx(0.58, abs=0.07)
  assert found['bigram'].accuracy == pytest.approx(0.375, abs=0.07)


def test_baselines_of_the_chorales_are_those_reported(data):
  found = MusicCounts(data.train.arrays).scores(data.validation.arrays)
  assert found['unigram'].nats_per_token == pytest.approx(3.286, abs=0.01)
  assert found['copy'] == pytest.approx((0.481, 2.339), abs=0.01)
  assert found['bigram'] == pytest.approx((0.487, 1.642), abs=0.01)
  assert found['chord'] == pytest.approx((0.724, 0.907), abs=0.01)
