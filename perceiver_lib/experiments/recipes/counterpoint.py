"""What a teacher of harmony marks in four voices, counted: a second opinion beside the likelihood."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from jaxtyping import Int

from perceiver_lib.modalities import music

CHORDS = ({0, 4, 7}, {0, 3, 7}, {0, 3, 6}, {0, 4, 7, 10}, {0, 3, 7, 10}, {0, 4, 7, 11}, {0, 3, 6, 10}, {0, 3, 6, 9})
"""Pitch classes over the root: the major, minor and diminished triad, and the seventh chords of the chorales."""


def counterpoint(scores: Int[np.ndarray, 'b t 4'], step_in_bar: Int[np.ndarray, 'b t']) -> dict[str, float]:
  """What a teacher marks, in percent: chords on the beat, crossed voices, parallel fifths and octaves.

  'chords': beats (even steps of a bar) on which all four voices sound and form a triad or a seventh chord, or a part of
  one. 'crossings': steps at which a voice is above the one that should be higher. 'parallels': motions of two voices in
  the same direction from a fifth (octave) to a fifth (octave), of all steps at which two voices move.
  """
  pitch, _ = music.decode(scores)
  sounds = (pitch >= 0).all(-1)
  beats = (pitch[sounds & (step_in_bar % 2 == 0)] % 12).tolist()
  chords = sum(_is_chord(frozenset(beat)) for beat in beats)
  crossings = (np.diff(pitch[sounds], axis=-1) > 0).any(-1).sum()
  change = np.diff(pitch, axis=1)
  moves, parallels = 0, 0
  for high, low in itertools.combinations(range(music.NUM_VOICES), 2):
    interval = (pitch[..., high] - pitch[..., low]) % 12
    moving = sounds[:, 1:] & sounds[:, :-1] & (change[..., high] != 0) & (change[..., low] != 0)
    together = moving & ((change[..., high] > 0) == (change[..., low] > 0))
    parallels += (together & (interval[:, 1:] == interval[:, :-1]) & np.isin(interval[:, 1:], (0, 7))).sum()
    moves += moving.sum()
  shares = {'chords': (chords, len(beats)), 'crossings': (crossings, sounds.sum()), 'parallels': (parallels, moves)}
  return {name: 100 * float(count) / max(int(total), 1) for name, (count, total) in shares.items()}


@functools.cache
def _is_chord(classes: frozenset[int]) -> bool:
  return any(all((c - root) % 12 in chord for c in classes) for chord in CHORDS for root in range(12))
