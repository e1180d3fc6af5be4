"""Notes as a MIDI file, and as sound that any browser plays."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Float32

from perceiver_lib.modalities.music import Notes

TICKS_PER_QUARTER = 480
CHURCH_ORGAN = 19
_RELEASE_SECONDS = 0.05
_HARMONICS = (1.0, 0.5, 0.25, 0.12, 0.06)


def write_midi(
  path: str | os.PathLike, voices: Notes, *, steps_per_quarter: int = 2, quarters_per_minute: float = 80.0
) -> None:
  """A standard MIDI file of format 1: a track for the tempo and one for each voice.

  Raises:
    ModuleNotFoundError: with the pip command, if mido is missing.
  """
  try:
    import mido
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError('MIDI files are written by mido: pip install mido', name='mido') from error

  file = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_QUARTER)
  tempo = mido.MetaMessage('set_tempo', tempo=mido.bpm2tempo(quarters_per_minute))
  file.tracks.append(mido.MidiTrack([tempo]))
  ticks = TICKS_PER_QUARTER // steps_per_quarter
  for channel, notes in enumerate(voices):
    events = [(onset, 'note_on', pitch) for onset, _, pitch in notes.tolist()]
    events += [(onset + length, 'note_off', pitch) for onset, length, pitch in notes.tolist()]
    track = mido.MidiTrack([mido.Message('program_change', channel=channel, program=CHURCH_ORGAN)])
    now = 0
    # 'note_off' sorts before 'note_on', so that a repeated note ends before it begins again.
    for step, kind, pitch in sorted(events):
      track.append(mido.Message(kind, channel=channel, note=pitch, velocity=80, time=(step - now) * ticks))
      now = step
    file.tracks.append(track)
  file.save(os.fspath(path))


def render(
  voices: Notes, *, steps_per_quarter: int = 2, quarters_per_minute: float = 80.0, sample_rate: int = 16_000
) -> Float32[np.ndarray, 'samples']:
  """The sound of the notes in [-0.9, 0.9]: a few harmonics each, with a soft beginning and end.

  Raises:
    ValueError: if there is no note.
  """
  notes = np.concatenate(voices)
  if not len(notes):
    raise ValueError('There is no note to render; a model that wrote only rests has not learned yet.')
  step_seconds = 60 / quarters_per_minute / steps_per_quarter
  last = (notes[:, 0] + notes[:, 1]).max() * step_seconds + _RELEASE_SECONDS
  sound = np.zeros(int(np.ceil(last * sample_rate)) + 1, np.float32)
  for onset, length, pitch in notes.tolist():
    start = round(onset * step_seconds * sample_rate)
    time = np.arange(round((length * step_seconds + _RELEASE_SECONDS) * sample_rate)) / sample_rate
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    tone = sum(
      weight * np.sin(2 * np.pi * k * frequency * time)
      for k, weight in enumerate(_HARMONICS, 1)
      if k * frequency < sample_rate / 2
    )
    left = length * step_seconds + _RELEASE_SECONDS - time
    envelope = np.minimum(1, np.minimum(time / 0.02, left / _RELEASE_SECONDS)) * np.exp(-0.5 * time)
    tone = (tone * envelope).astype(np.float32)[: len(sound) - start]
    sound[start : start + len(tone)] += tone
  return 0.9 * sound / np.abs(sound).max()


def write_wav(path: str | os.PathLike, sound: Float32[np.ndarray, 'samples'], *, sample_rate: int = 16_000) -> None:
  """A mono WAV file of 16 bits a sample; what exceeds [-1, 1] is clipped."""
  from scipy.io import wavfile

  wavfile.write(os.fspath(path), sample_rate, np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16))
