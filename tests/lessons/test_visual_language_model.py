import numpy as np
import pytest

from perceiver_lib.data import digit_scenes
from perceiver_lib.data.digit_scenes import DIGIT, EMPTY
from perceiver_lib.data.loading import ArraySource
from perceiver_lib.lessons import visual_language_model as lesson
from perceiver_lib.modalities.text import BOS, EOS, ByteTokenizer

PLACES = np.array([[7, 2, EMPTY, EMPTY], [5, 5, EMPTY, 4], [1, 0, 1, 0], [3, EMPTY, EMPTY, EMPTY]], np.int32)


@pytest.fixture(scope='module')
def pictures():
  random = np.random.default_rng(0)
  image = np.zeros((20, DIGIT, DIGIT, 1), np.uint8)
  image[:, 8:20, 8:20] = random.integers(1, 256, (20, 12, 12, 1))
  return ArraySource({'image': image, 'label': np.arange(20) % 10})


@pytest.fixture(scope='module')
def source(pictures):
  return ArraySource(digit_scenes.render(PLACES, pictures.arrays, np.random.default_rng(1)))


def test_captions_become_ids_between_a_begin_and_an_end(source):
  examples = lesson.caption_examples(source.arrays)
  said = [ByteTokenizer().decode(row) for row in np.asarray(examples.targets)]
  assert said == [digit_scenes.caption(row.tolist()) for row in PLACES]
  for inputs, targets, scored in zip(examples.inputs.values, examples.targets, examples.scored, strict=True):
    count = int(scored.sum())
    assert inputs[0] == BOS and targets[count - 1] == EOS
    np.testing.assert_array_equal(inputs[1:count], targets[: count - 1])


def test_left_and_right_are_exchanged_in_the_picture_and_in_its_caption(source):
  other = lesson.swapped(source).arrays
  said = [bytes(row).rstrip(b'\0').decode() for row in other['caption']]
  expected = [
    'a two left of a seven',
    'two fives above a four',
    'two zeros left of two ones',
    'a three at the top right',
  ]
  assert said == expected
  for arrays in (source.arrays, other):
    boxes = [arrays['image'][0][y : y + DIGIT, x : x + DIGIT] for y, x in arrays['corner'][0]]
    assert boxes[0].any() and boxes[1].any() and not boxes[2].any()
  (y, x), (new_y, new_x) = source.arrays['corner'][0, 0], other['corner'][0, 1]
  seven = other['image'][0, new_y : new_y + DIGIT, new_x : new_x + DIGIT]
  np.testing.assert_array_equal(source.arrays['image'][0, y : y + DIGIT, x : x + DIGIT], seven)


def test_the_single_digit_that_a_caption_names_first_and_the_tokens_it_covers(source):
  words = lesson.first_words(source, 8)
  assert words.names == ['seven'] and words.start.tolist() == [2]
  own, other = words.own[0], words.other[0]
  assert own[:4, :4].all() and own.sum() == 16 and other[:4, 4:].all() and other.sum() == 16
  assert lesson.mass(own[None] / 16, words.own) == 1 and lesson.mass(own[None] / 16, words.other) == 0


def test_rules_know_the_very_pictures_or_only_the_grammar(pictures, source):
  assert lesson.told_the_grammar(source, lesson.nearest_digit(pictures)) == 100
  assert lesson.told_the_grammar(source, lambda cells: np.full(len(cells), 3)) == 25
  assert lesson.nearest_scene(pictures, source, num_scenes=4, seed=0) < 100
