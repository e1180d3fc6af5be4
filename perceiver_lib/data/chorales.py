"""Bach's four-part chorales, note for note, from the MusicXML files that the Python package music21 ships.

The same tune was harmonised several times, up to eleven times here, so whole tunes are held out. Repeats are not played
twice; tied notes are one note.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Float64, Int16, Shaped

from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version, sha256
from perceiver_lib.data.loading import ArraySource
from perceiver_lib.data.splits import filled_by_hash

VOICES = ('soprano', 'alto', 'tenor', 'bass')
REST = -1
TEST_SHARE, VALIDATION_SHARE = 0.15, 0.10
INCIPIT_INTERVALS = 8
"""Pieces whose soprano begins with the same intervals have the same tune, in whatever key."""
SHARED_INTERVALS = 14
"""So have pieces whose sopranos share so many intervals in a row: a tune may differ in its first bar only."""

_STEPS = {'C': 0, 'D': 2, 'E': 4, 'F': 5, 'G': 7, 'A': 9, 'B': 11}
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chorale:
  """One piece.

  Attributes:
    name: of its file, such as 'bwv269'.
    voices: soprano, alto, tenor, bass; a row a note: onset and duration in quarter notes, MIDI pitch.
    length: in quarter notes.
    bars: (a bar line in quarter notes, bar length) from the first and after each change of metre. A pickup
      makes the first bar line later than 0.
  """

  name: str
  voices: tuple[Float64[np.ndarray, '_ 3'], ...]
  length: float
  bars: tuple[tuple[float, float], ...]

  @property
  def intervals(self) -> tuple[int, ...]:
    """Semitones from each note of the soprano to the next."""
    return tuple(np.diff(self.voices[0][:, 2]).astype(int).tolist())


class ChoraleSource(ArraySource):
  """Chorales on a grid of time steps, padded to the longest. Attributes: `names`, one a row."""

  def __init__(self, arrays: Mapping[str, Shaped[np.ndarray, 'n ...']], names: Sequence[str]):
    super().__init__(arrays)
    self.names = tuple(names)


def load(*, steps_per_quarter: int = 2) -> DataSet:
  """All four-part chorales, 75 / 10 / 15 % of the pieces by whole tunes; every split is a `ChoraleSource`.

  Each example: 'pitch' int16 `[steps, 4]`, the MIDI pitch that sounds at each step in soprano, alto, tenor and bass, or
  `REST`; 'onset' bool `[steps, 4]`, whether it begins there; 'step_in_bar' int16 `[steps]`, 0 on the first beat;
  'num_steps', behind which there is padding (`REST`).

  Args:
    steps_per_quarter: 2 = eighth notes. A note that no step falls into is left out: 1.3 % of all notes at 2, five
      notes at 4.

  Raises:
    FileNotFoundError: if music21 is not installed, with the pip command.
    ValueError: if the steps are not one or more a quarter note.
  """
  if steps_per_quarter < 1:
    raise ValueError(f'A grid needs one or more steps a quarter note; got {steps_per_quarter}.')
  pieces = read()
  parts = _split(pieces)
  scores = {piece.name: on_grid(piece, steps_per_quarter) for piece in pieces}
  longest = max(len(pitch) for pitch, _, _ in scores.values())

  def source(names: Sequence[str]) -> ChoraleSource:
    chosen = [scores[name] for name in names]
    columns = [
      np.stack([_padded(score[column], longest, fill) for score in chosen])
      for column, fill in enumerate((REST, False, 0))
    ]
    lengths = np.array([len(pitch) for pitch, _, _ in chosen], np.int32)
    names_of_columns = ('pitch', 'onset', 'step_in_bar')
    return ChoraleSource(dict(zip(names_of_columns, columns, strict=True)) | {'num_steps': lengths}, names)

  sources = {split: source(names) for split, names in parts.items()}
  return DataSet(
    **sources,
    provenance=Provenance(
      name='Bach chorales',
      kind='real',
      source=f'music21/corpus/bach/*.mxl of four parts, inside {package_version("music21")}',
      licence='music: public domain; encodings: free to distribute with music21, some not for commercial use',
      counts={split: len(names) for split, names in parts.items()},
      checksum=sha256(voice for piece in pieces for voice in piece.voices),
      note=f'{len(pieces)} pieces, {len(set(tunes(pieces).values()))} tunes, {steps_per_quarter} steps a quarter note; '
      'no tune is in two splits, in any key',
    ),
  )


def _padded(array: np.ndarray, length: int, fill: int) -> np.ndarray:
  return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)], constant_values=fill)


@functools.cache
def read() -> tuple[Chorale, ...]:
  """Every piece of four parts, by name. Takes about two seconds, once a process."""
  paths = [path for path in package_files('music21', '.mxl') if path.parent.name == 'bach']
  pieces = [parse(path) for path in sorted(paths, key=lambda path: path.stem)]
  return tuple(piece for piece in pieces if len(piece.voices) == len(VOICES))


def parse(path: Path) -> Chorale:
  """A compressed MusicXML file whose parts have one voice each, as these have; grace notes are left out."""
  with zipfile.ZipFile(path) as archive:
    container = ElementTree.fromstring(archive.read('META-INF/container.xml'))
    score = ElementTree.fromstring(archive.read(container.find('.//{*}rootfile').get('full-path')))
  parts = [_part(part) for part in score.findall('part')]
  _, metres, first_bar, length = parts[0]
  bars = [(start + (first_bar if start == 0 and first_bar < metre else 0), metre) for start, metre in metres]
  return Chorale(name=path.stem, voices=tuple(part[0] for part in parts), length=length, bars=tuple(bars))


def _part(part: ElementTree.Element) -> tuple[np.ndarray, list[tuple[float, float]], float, float]:
  """Notes, (onset, bar length) of every metre, length of the first bar, length of the part; in quarter notes."""
  time, divisions, first_bar = 0.0, 1, None
  notes: list[list[float]] = []
  metres: list[tuple[float, float]] = []
  for measure in part.findall('measure'):
    for element in measure:
      if element.tag == 'attributes':
        divisions = int(element.findtext('divisions', str(divisions)))
        if (metre := element.find('time')) is not None:
          metres.append((time, 4 * int(metre.findtext('beats')) / int(metre.findtext('beat-type'))))
      elif element.tag == 'forward':
        time += int(element.findtext('duration')) / divisions
      elif element.tag == 'backup':
        time -= int(element.findtext('duration')) / divisions
      elif element.tag == 'note' and element.find('grace') is None:
        duration = int(element.findtext('duration')) / divisions
        if (pitch := element.find('pitch')) is not None:
          _add_note(notes, time, duration, _midi_pitch(pitch), {tie.get('type') for tie in element.findall('tie')})
        time += duration
    first_bar = time if first_bar is None else first_bar
  return np.array(notes, np.float64).reshape(-1, 3), metres, first_bar, time


def _midi_pitch(pitch: ElementTree.Element) -> int:
  alteration = int(float(pitch.findtext('alter', '0')))
  return _STEPS[pitch.findtext('step')] + 12 * (int(pitch.findtext('octave')) + 1) + alteration


def _add_note(notes: list[list[float]], onset: float, duration: float, pitch: int, ties: set[str | None]) -> None:
  if 'stop' in ties and notes and notes[-1][2] == pitch and abs(sum(notes[-1][:2]) - onset) < _ROUNDING:
    notes[-1][1] += duration
  else:
    notes.append([onset, duration, pitch])


def on_grid(
  piece: Chorale, steps_per_quarter: int
) -> tuple[Int16[np.ndarray, 't 4'], Bool[np.ndarray, 't 4'], Int16[np.ndarray, 't']]:
  """Pitch and onset of what sounds at each time step, and the steps since the last bar line."""
  time = np.arange(round(np.ceil(piece.length * steps_per_quarter - _ROUNDING))) / steps_per_quarter
  pitch = np.full((len(time), len(piece.voices)), REST, np.int16)
  onset = np.zeros(pitch.shape, bool)
  for number, notes in enumerate(piece.voices):
    note = np.searchsorted(notes[:, 0], time + _ROUNDING) - 1
    sounds = (note >= 0) & (time < notes[note, :2].sum(-1) - _ROUNDING)
    pitch[sounds, number] = notes[note[sounds], 2]
    onset[:, number] = sounds & (np.diff(note, prepend=-1) != 0)
  starts, lengths = np.array(piece.bars).T
  metre = np.maximum(np.searchsorted(starts, time + _ROUNDING) - 1, 0)
  in_bar = np.mod(time - starts[metre] + _ROUNDING, lengths[metre])
  return pitch, onset, np.floor(in_bar * steps_per_quarter).astype(np.int16)


def tunes(pieces: Iterable[Chorale]) -> dict[str, str]:
  """{name: name of the first piece with the same tune}, whatever the key.

  Pieces that begin with the same intervals, or share a long run of them, are joined, and so are those joined to the
  same piece.
  """
  parent: dict[str, str] = {}

  def first_of(name: str) -> str:
    while parent[name] != name:
      name = parent[name]
    return name

  owner: dict[tuple, str] = {}
  for piece in pieces:
    parent[piece.name] = piece.name
    intervals = piece.intervals
    runs = {intervals[i : i + SHARED_INTERVALS] for i in range(len(intervals) - SHARED_INTERVALS + 1)}
    for run in [('incipit', *intervals[:INCIPIT_INTERVALS]), *sorted(runs)]:
      one, other = sorted((first_of(piece.name), first_of(owner.setdefault(run, piece.name))))
      parent[other] = one
  return {name: first_of(name) for name in parent}


def _split(pieces: Sequence[Chorale]) -> dict[str, list[str]]:
  """Names of the pieces of each split; whole tunes are held out."""
  tune = tunes(pieces)
  split_of = filled_by_hash(collections.Counter(tune.values()), test=TEST_SHARE, validation=VALIDATION_SHARE)
  parts: dict[str, list[str]] = {'train': [], 'validation': [], 'test': []}
  for name in sorted(tune):
    parts[split_of[tune[name]]].append(name)
  return parts
