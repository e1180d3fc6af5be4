"""Piano music as events: the vocabulary of krasserm's `perceiver-ar-sam-giant-midi`.

388 events in this order: a key goes down (128 pitches), a key goes up (128), time passes (1 to 100 hundredths of a
second), how hard the next keys are struck (32 steps of 4). PAD is the last id. Time and strength are rounded to these
steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Int32

DOWN, UP, SHIFT, VELOCITY, PAD = 0, 128, 256, 356, 388
"""The first id of each kind."""
VOCABULARY_SIZE = PAD + 1
STEPS_A_SECOND, LONGEST_SHIFT, VELOCITY_STEP = 100, 100, 4


def encode(notes: Float[np.ndarray, 'n 4']) -> Int32[np.ndarray, 'm']:
  """The events of notes in any order, a row a note: onset and end in seconds, MIDI pitch and velocity.

  Raises:
    ValueError: for pitches or velocities outside MIDI's, and for notes that begin before 0 or end before they begin.
  """
  onset, end, *others = notes.T
  if not all(((one >= 0) & (one <= 127)).all() for one in others) or not ((onset >= 0) & (onset <= end)).all():
    raise ValueError('Notes need 0 <= onset <= end in seconds, and pitches and velocities of 0 to 127.')
  steps = np.rint(notes[:, :2] * STEPS_A_SECOND)
  events = []
  for first, last, pitch, velocity in np.concatenate([steps, notes[:, 2:]], axis=1).astype(int).tolist():
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
  ids = np.asarray(ids, np.int64)
  if ids.size and not 0 <= ids.min() <= ids.max() <= PAD:
    raise ValueError(f'Ids of events must be in [0, {PAD}]; got {ids.min()} to {ids.max()}.')
  now, strength, notes = 0, 0, []
  sounding: dict[int, list[tuple[int, int]]] = {}

  def end(pitch: int) -> None:
    first, velocity = sounding[pitch].pop(0)
    notes.append((first, max(now, first + 1), pitch, velocity))

  for event in ids.tolist():
    if event < UP:
      sounding.setdefault(event, []).append((now, strength))
    elif event < SHIFT and sounding.get(event - UP):
      end(event - UP)
    elif SHIFT <= event < VELOCITY:
      now += event - SHIFT + 1
    elif VELOCITY <= event < PAD:
      strength = (event - VELOCITY) * VELOCITY_STEP
  for pitch, began in sounding.items():
    while began:
      end(pitch)
  return np.array(sorted(notes), np.float64).reshape(-1, 4) / [STEPS_A_SECOND, STEPS_A_SECOND, 1, 1]
