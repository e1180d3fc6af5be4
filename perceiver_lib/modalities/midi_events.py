"""Piano music as events: the vocabulary of krasserm's `perceiver-ar-sam-giant-midi`, and MIDI files as its notes.

388 events in this order: a key goes down (128 pitches), a key goes up (128), time passes (1 to 100 hundredths of a
second), how hard the next keys are struck (32 steps of 4). PAD is the last id. Time and strength are rounded to these
steps, and a pedal that is held lengthens the notes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Int32

from perceiver_lib.modalities.music_files import TICKS_PER_QUARTER, import_mido

DOWN, UP, SHIFT, VELOCITY, PAD = 0, 128, 256, 356, 388
"""The first id of each kind."""
VOCABULARY_SIZE = PAD + 1
STEPS_A_SECOND, LONGEST_SHIFT, VELOCITY_STEP = 100, 100, 4
_SUSTAIN_PEDAL = 64

PianoNotes = Float[np.ndarray, '_ 4']
"""A row a note: onset and end in seconds, MIDI pitch, MIDI velocity."""


def encode(notes: PianoNotes) -> Int32[np.ndarray, 'm']:
  """The events of notes in any order; time begins at 0.

  Raises:
    ValueError: for pitches or velocities outside MIDI's, and for notes that begin before 0 or end before they begin.
  """
  notes = np.asarray(notes, np.float64).reshape(-1, 4)
  onset, end, *others = notes.T
  if not all(((one >= 0) & (one <= 127)).all() for one in others) or not ((onset >= 0) & (onset <= end)).all():
    raise ValueError('Notes need 0 <= onset <= end in seconds, and pitches and velocities of 0 to 127.')
  steps = np.rint(notes[:, :2] * STEPS_A_SECOND).astype(int)
  pitches, velocities = notes[:, 2:].astype(int).T
  events = []
  for (first, last), pitch, velocity in zip(steps.tolist(), pitches.tolist(), velocities.tolist(), strict=True):
    # A key that is struck again goes up before it goes down.
    events += [(first, 1, pitch, velocity // VELOCITY_STEP), (max(last, first + 1), 0, pitch, 0)]
  ids, now, strength = [], 0, 0
  for step, down, pitch, velocity in sorted(events):
    while now < step:
      passed = min(step - now, LONGEST_SHIFT)
      ids.append(SHIFT + passed - 1)
      now += passed
    if down and velocity != strength:
      ids.append(VELOCITY + velocity)
      strength = velocity
    ids.append((DOWN if down else UP) + pitch)
  return np.array(ids, np.int32)


def decode(ids: Int[np.ndarray, 'm'] | Sequence[int]) -> Float64[np.ndarray, 'n 4']:
  """The notes of events, by onset; PAD says nothing.

  Whatever a model writes can be played: a key that goes up without having gone down is nothing, and one that stays down
  sounds to the end.

  Raises:
    ValueError: for ids outside the vocabulary.
  """
  ids = np.asarray(ids, np.int64).reshape(-1)
  if ids.size and not 0 <= ids.min() <= ids.max() <= PAD:
    raise ValueError(f'Ids of events must be in [0, {PAD}]; got {ids.min()} to {ids.max()}.')
  now, strength, notes = 0, 0, []
  sounding: dict[int, list[tuple[int, int]]] = {}
  for event in ids.tolist():
    if event < UP:
      sounding.setdefault(event, []).append((now, strength))
    elif event < SHIFT:
      if began := sounding.get(event - UP):
        first, velocity = began.pop(0)
        notes.append((first, max(now, first + 1), event - UP, velocity))
    elif event < VELOCITY:
      now += event - SHIFT + 1
    elif event < PAD:
      strength = (event - VELOCITY) * VELOCITY_STEP
  notes += [
    (first, max(now, first + 1), pitch, velocity) for pitch, began in sounding.items() for first, velocity in began
  ]
  found = np.array(sorted(notes), np.float64).reshape(-1, 4)
  found[:, :2] /= STEPS_A_SECOND
  return found


def read_midi(path: str | os.PathLike) -> Float64[np.ndarray, 'n 4']:
  """The notes of a MIDI file, drums left out; one that a pedal holds ends with the pedal, or when it is struck again.

  Raises:
    ModuleNotFoundError: with the pip command, if mido is missing.
  """
  now, notes = 0.0, []
  down: dict[tuple[int, int], tuple[float, int]] = {}
  held: dict[int, set[int]] = {}

  def end(channel: int, pitch: int) -> None:
    if (began := down.pop((channel, pitch), None)) is not None:
      notes.append((began[0], now, pitch, began[1]))

  for message in import_mido().MidiFile(os.fspath(path)):
    now += message.time
    if message.type not in ('note_on', 'note_off', 'control_change') or message.channel == 9:
      continue
    channel = message.channel
    if message.type == 'control_change':
      if message.control == _SUSTAIN_PEDAL and message.value >= 64:
        held.setdefault(channel, set())
      elif message.control == _SUSTAIN_PEDAL:
        for pitch in held.pop(channel, ()):
          end(channel, pitch)
    elif message.type == 'note_on' and message.velocity:
      end(channel, message.note)
      held.get(channel, set()).discard(message.note)
      down[channel, message.note] = now, message.velocity
    elif channel in held:
      held[channel].add(message.note)
    else:
      end(channel, message.note)
  for channel, pitch in list(down):
    end(channel, pitch)
  return np.array(sorted(notes), np.float64).reshape(-1, 4)


def write_midi(path: str | os.PathLike, notes: PianoNotes) -> None:
  """A standard MIDI file of one track; raises a ModuleNotFoundError with the pip command, if mido is missing."""
  mido = import_mido()
  ticks_a_second = 2 * TICKS_PER_QUARTER  # 120 quarters a minute, what a file without a tempo has
  events = [(onset, 'note_on', pitch, velocity) for onset, _, pitch, velocity in notes.tolist()]
  events += [(end, 'note_off', pitch, 0) for _, end, pitch, _ in notes.tolist()]
  track, now = mido.MidiTrack(), 0
  for seconds, kind, pitch, velocity in sorted(events):
    tick = round(seconds * ticks_a_second)
    track.append(mido.Message(kind, note=int(pitch), velocity=int(velocity), time=tick - now))
    now = tick
  mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_QUARTER, tracks=[track]).save(os.fspath(path))
