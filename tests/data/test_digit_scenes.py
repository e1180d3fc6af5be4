import itertools

import numpy as np
import pytest

from perceiver_lib.data import digit_scenes
from perceiver_lib.data.digit_scenes import CELL, DIGIT, EMPTY, caption


@pytest.mark.parametrize(
  ('places', 'said'),
  [
    ((EMPTY, 7, EMPTY, EMPTY), 'a seven at the top right'),
    ((6, EMPTY, 6, EMPTY), 'two sixes at the left'),
    ((EMPTY, EMPTY, 1, 1), 'two ones at the bottom'),
    ((3, 3, 3, EMPTY), 'three threes, none at the bottom right'),
    ((0, 0, 0, 0), 'four zeros'),
    ((7, 2, EMPTY, EMPTY), 'a seven left of a two'),
    ((7, 2, EMPTY, 2), 'a seven left of two twos'),
    ((5, 5, EMPTY, 4), 'two fives above a four'),
    ((8, 8, 9, 9), 'two eights above two nines'),
    ((EMPTY, 9, EMPTY, 8), 'a nine above an eight'),
    ((7, EMPTY, EMPTY, 2), None),  # left of and above are both true
    ((7, EMPTY, EMPTY, 7), None),
    ((7, 2, 2, 2), None),
    ((7, 2, 2, 7), None),
    ((7, 2, 1, EMPTY), None),
    ((EMPTY,) * 4, None),
  ],
)
def test_a_caption_is_said_only_where_it_is_the_one_that_is_true(places, said):
  assert caption(places) == said


def test_every_drawn_scene_has_its_caption_and_numbers_of_digits_are_equally_likely():
  groups = digit_scenes.sentences()
  assert [len(group) for group in groups] == [40, 220, 400, 190]
  assert max(len(said) for group in groups for said in group) == digit_scenes.LONGEST
  drawn = digit_scenes.draw(np.random.default_rng(0), 2_000)
  counts = np.bincount((drawn != EMPTY).sum(1), minlength=5) / len(drawn)
  np.testing.assert_allclose(counts, [0, *[0.25] * 4], atol=0.05)
  assert digit_scenes.likeliest_share() == 0.25 / 40


def test_a_canvas_holds_the_pictures_where_it_says_and_nothing_else():
  random = np.random.default_rng(1)
  pictures = {'image': random.integers(1, 256, (20, DIGIT, DIGIT, 1), np.uint8), 'label': np.arange(20) % 10}
  scenes = digit_scenes.render(digit_scenes.draw(random, 6), pictures, random)
  for image, said, places, corner in zip(*scenes.values(), strict=True):
    assert bytes(said).rstrip(b'\0').decode() == caption(places.tolist())
    left = image.copy()
    for place, (row, column), (y, x) in zip(places, itertools.product((0, 1), repeat=2), corner, strict=True):
      assert 0 <= y - CELL * row <= CELL - DIGIT and 0 <= x - CELL * column <= CELL - DIGIT
      if place != EMPTY:
        found = image[y : y + DIGIT, x : x + DIGIT]
        assert any((found == pictures['image'][which, :, :, 0]).all() for which in (place, place + 10))
        left[y : y + DIGIT, x : x + DIGIT] = 0
    assert not left.any()


def test_splits_share_no_picture_and_a_batch_depends_on_the_seed_and_the_step_alone():
  data = digit_scenes.load(num_scenes=8)
  train = {picture.tobytes() for picture in data.train.arrays['image']}
  for scenes in (data.validation.arrays, data.test.arrays):
    for image, places, corner in zip(*(scenes[name] for name in ('image', 'places', 'corner')), strict=True):
      for y, x in corner[places != EMPTY]:
        assert image[y : y + DIGIT, x : x + DIGIT].tobytes() not in train
  stream = digit_scenes.batches(data.train, 3, seed=5)
  first = stream(0)
  next(first)
  np.testing.assert_array_equal(next(first)['image'], next(stream(1))['image'])
  captions = next(digit_scenes.batches(data.train, 3, seed=5, only_captions=True)(1))
  np.testing.assert_array_equal(captions['caption'], next(stream(1))['caption'])
