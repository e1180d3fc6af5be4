"""Scenes of one to four real digits on a canvas of bytes, with captions that say which, how many and where.

A canvas has four places, two by two; in each stands one digit, a few pixels off, or none. The grammar:

    a seven at the top left                 one digit, at a corner
    two sevens at the left                  two of a kind, at the top, the bottom, the left or the right
    three sevens, none at the top left      three of a kind
    four sevens
    a seven left of two threes              two kinds, all of the one left of, or above, all of the other

A scene is used only if exactly one sentence is true of it: with two kinds on a diagonal both relations hold, and a
third kind, or three of one kind beside another, have no sentence. So the caption is a function of the scene.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from perceiver_lib.data import mnist5k
from perceiver_lib.data.base import DataSet, sha256
from perceiver_lib.data.loading import ArraySource

NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
EMPTY = -1
"""Stands where a place holds no digit."""
DIGIT, CELL = 28, 32
SIDE = 2 * CELL
LONGEST = len('three sevens, none at the bottom right')

Places = tuple[int, int, int, int]
"""The digit at the top left, top right, bottom left and bottom right, or EMPTY."""


def caption(places: Sequence[int]) -> str | None:
  """The one sentence that is true of a scene, or None where there is none or more than one."""
  kinds = {
    digit: [divmod(at, 2) for at, other in enumerate(places) if other == digit] for digit in set(places) - {EMPTY}
  }
  if len(kinds) == 1:
    [(digit, cells)] = kinds.items()
    where = _where(cells)
    return None if where is None else _some(digit, len(cells)) + where
  if len(kinds) != 2:
    return None
  true = []
  for first, second in itertools.permutations(kinds):
    for axis, relation in ((1, 'left of'), (0, 'above')):
      if max(cell[axis] for cell in kinds[first]) < min(cell[axis] for cell in kinds[second]):
        true.append(f'{_some(first, len(kinds[first]))} {relation} {_some(second, len(kinds[second]))}')
  return true[0] if len(true) == 1 else None


def _some(digit: int, count: int) -> str:
  name = NUMBERS[digit]
  if count == 1:
    return f'{"an" if name == "eight" else "a"} {name}'
  return f'{NUMBERS[count]} {name}{"es" if name == "six" else "s"}'


def _where(cells: Sequence[tuple[int, int]]) -> str | None:
  """Where some of a kind are, as the end of a sentence."""
  if len(cells) == 4:
    return ''
  if len(cells) == 3:
    [(row, column)] = {*itertools.product((0, 1), repeat=2)} - {*cells}
    return f', none at the {_ROWS[row]} {_COLUMNS[column]}'
  if len(cells) == 2:
    (row, column), (other_row, other_column) = cells
    if row != other_row and column != other_column:
      return None
    return f' at the {_ROWS[row] if row == other_row else _COLUMNS[column]}'
  [(row, column)] = cells
  return f' at the {_ROWS[row]} {_COLUMNS[column]}'


_ROWS, _COLUMNS = ('top', 'bottom'), ('left', 'right')


@functools.cache
def sentences() -> tuple[Mapping[str, tuple[Places, ...]], ...]:
  """For one, two, three and four digits: every caption with the scenes that it is true of."""
  found = [defaultdict(list) for _ in range(4)]
  for places in itertools.product(range(EMPTY, 10), repeat=4):
    if (said := caption(places)) is not None:
      found[4 - places.count(EMPTY) - 1][said].append(places)
  return tuple({said: tuple(scenes) for said, scenes in group.items()} for group in found)


def draw(random: np.random.Generator, count: int) -> Int[np.ndarray, 'n 4']:
  """Scenes: the number of digits first, then the caption, then where, each of equal chances."""
  drawn = []
  for group in random.integers(0, 4, count):
    captions = _listed()[group]
    scenes = captions[random.integers(len(captions))]
    drawn.append(scenes[random.integers(len(scenes))])
  return np.array(drawn, np.int32)


@functools.cache
def _listed() -> tuple[tuple[tuple[Places, ...], ...], ...]:
  return tuple(tuple(group.values()) for group in sentences())


def likeliest_share() -> float:
  """How often the most frequent caption is right: the best that one who sees nothing can do."""
  return 0.25 / min(map(len, sentences()))


def render(
  places: Int[np.ndarray, 'n 4'], pictures: Mapping[str, np.ndarray], random: np.random.Generator
) -> dict[str, np.ndarray]:
  """Canvases of scenes, with random pictures of their digits at random corners.

  Args:
    pictures: 'image' uint8 `[p, 28, 28, 1]` and 'label' `[p]`.

  Returns:
    'image' uint8 `[n, 64, 64]`; 'caption' uint8 `[n, 38]`, its bytes with zeros behind; 'places' `[n, 4]`; 'corner'
    `[n, 4, 2]`: row and column of the top left pixel of each picture.
  """
  canvas = np.zeros((len(places), SIDE, SIDE), np.uint8)
  corner = np.array([*itertools.product((0, CELL), repeat=2)])
  corner = (corner + random.integers(0, CELL - DIGIT + 1, (len(places), 4, 2))).astype(np.int32)
  for digit in range(10):
    rows, cells = np.nonzero(places == digit)
    chosen = random.choice(np.flatnonzero(pictures['label'] == digit), len(rows))
    for row, cell, picture in zip(rows, cells, chosen, strict=True):
      y, x = corner[row, cell]
      canvas[row, y : y + DIGIT, x : x + DIGIT] = pictures['image'][picture, :, :, 0]
  return {'image': canvas, 'caption': said_of(places), 'places': places, 'corner': corner}


def said_of(places: Int[np.ndarray, 'n 4']) -> UInt8[np.ndarray, 'n l']:
  rows = [caption(scene.tolist()).encode().ljust(LONGEST, b'\0') for scene in places]
  return np.frombuffer(b''.join(rows), np.uint8).reshape(-1, LONGEST)


def batches(
  pictures: ArraySource, batch_size: int, *, seed: int, only_captions: bool = False
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """New scenes at every step, 'image' and 'caption' of `render`, for `fit`: a step's batch depends on the seed alone.

  Args:
    pictures: those of one split, such as `load().train`.
    only_captions: without images, for a language model.
  """

  def stream(step: int) -> Iterator[dict[str, np.ndarray]]:
    for number in itertools.count(step):
      random = np.random.default_rng((seed, number))
      places = draw(random, batch_size)
      if only_captions:
        yield {'caption': said_of(places)}
      else:
        scenes = render(places, pictures.arrays, random)
        yield {name: scenes[name] for name in ('image', 'caption')}

  return stream


def load(*, num_scenes: int, seed: int = 0, data_dir: str | os.PathLike | None = None) -> DataSet:
  """Pictures of digits to make training scenes of, and `num_scenes` scenes each for validation and test.

  The splits are those of `mnist5k`: no picture of a test scene is in a training scene. Captions are shared, for there
  are few.

  Args:
    seed: of the scenes.
    data_dir: where the pictures are kept, see `preparation.data_directory`.

  Returns:
    'train' holds pictures, 'image' and 'label', for `batches`; 'validation' and 'test' what `render` returns.
  """
  pictures = mnist5k.load(data_dir)
  scenes = {}
  for number, name in enumerate(('validation', 'test')):
    random = np.random.default_rng((seed, 7, number))
    scenes[name] = ArraySource(render(draw(random, num_scenes), getattr(pictures, name).arrays, random))
  provenance = dataclasses.replace(
    pictures.provenance,
    name='digit_scenes',
    kind='synthetic',
    source=f'scenes made by a program of real pictures: {pictures.provenance.source}',
    counts={'train': len(pictures.train)} | {name: len(source) for name, source in scenes.items()},
    checksum=sha256(source.arrays['image'] for source in scenes.values()),
    note=f'train counts pictures, of which scenes are made; {sum(map(len, sentences()))} captions; '
    + pictures.provenance.note,
  )
  return DataSet(train=pictures.train, **scenes, provenance=provenance)
