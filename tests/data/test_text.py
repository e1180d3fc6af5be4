"""Windows and crops: every byte once, nothing across a border, any step again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_lib.data.text import Documents, RandomCrops, Windows


def _numbered(*sizes: int) -> Documents:
  """Document i is made of the byte i + 1."""
  return Documents.of({f'document {i}': bytes([i + 1]) * size for i, size in enumerate(sizes)})


def test_documents_are_a_source_of_texts():
  documents = Documents.of({'a': b'one', 'b': b'', 'c': b'three'})
  assert [documents[i] for i in range(3)] == [
    {'text': b'one', 'name': 'a'},
    {'text': b'', 'name': 'b'},
    {'text': b'three', 'name': 'c'},
  ]
  assert documents[-1]['name'] == 'c'
  assert documents.joined() == b'one\n\n\n\nthree'
  assert documents.num_bytes == 8
  assert documents.spread(3) is documents and documents.spread(2).names == ('a', 'c')
  with pytest.raises(IndexError):
    documents[3]


@given(
  st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any),
  st.integers(1, 13).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
)
def test_windows_score_every_byte_once_with_the_context_asked_for(sizes, length_and_stride):
  length, stride = length_and_stride
  documents = Documents.of({str(i): np.arange(size, dtype=np.uint8).tobytes() for i, size in enumerate(sizes)})
  windows = Windows(documents, length, stride)
  times_scored = [np.zeros(size, int) for size in sizes]
  batch = windows.rows(range(len(windows)))
  for i in range(len(windows)):
    window = {key: value[i] for key, value in batch.items()}
    inside = min(sizes[window['document']], length)
    assert window['valid'].sum() == inside
    np.testing.assert_array_equal(window['bytes'][:inside], window['start'] + np.arange(inside))
    times_scored[window['document']][(window['start'] + np.arange(length))[window['scored']]] += 1
    if window['start']:
      assert window['scored'].nonzero()[0][0] >= length - stride
  for counts in times_scored:
    np.testing.assert_array_equal(counts, 1)


@pytest.mark.parametrize('stride', [0, 6])
def test_windows_refuse_strides_that_leave_bytes_out(stride):
  with pytest.raises(ValueError, match=f'got {stride} and 5'):
    Windows(_numbered(11), 5, stride)


def test_windows_refuse_nothing():
  with pytest.raises(ValueError, match='empty'):
    Windows(_numbered(0, 0), 5)


def test_a_batch_of_crops_is_a_function_of_seed_and_step():
  corpus = Documents.of({'a': bytes(range(251)), 'b': bytes(range(97))})
  crops = RandomCrops(corpus, 13, 7, seed=3)
  stream = crops.batches()
  ahead = [next(stream)['bytes'] for _ in range(4)]
  np.testing.assert_array_equal(next(RandomCrops(corpus, 13, 7, seed=3).batches(3))['bytes'], ahead[3])
  assert (ahead[2] != ahead[3]).any()
  assert (RandomCrops(corpus, 13, 7, seed=4).batch(3)['bytes'] != ahead[3]).any()


def test_every_place_is_equally_likely_and_no_crop_crosses_a_border():
  sizes = (29, 0, 17, 5, 3)
  length, num_crops = 5, 60_000
  batch = RandomCrops(_numbered(*sizes), length, num_crops, seed=0).batch(0)
  document = batch['bytes'][:, 0] - 1
  for row_document, rows, valid in zip(document[:500], batch['bytes'], batch['valid'], strict=False):
    assert set(rows[valid]) == {row_document + 1}
    assert not rows[~valid].any()
    assert valid.sum() == min(sizes[row_document], length)
  places = np.array([25, 0, 13, 1, 1])
  share = np.bincount(document, minlength=5) / num_crops
  np.testing.assert_allclose(share, places / places.sum(), atol=5 * 0.5 / np.sqrt(num_crops))


def test_crops_reach_both_ends():
  batch = RandomCrops(Documents.of({'a': bytes(range(23))}), 5, 1000, seed=0).batch(0)
  assert set(batch['bytes'][:, 0]) == set(range(19))


def test_corpora_are_mixed_by_weight():
  many = 20_000
  corpora = [_numbered(100), Documents.of({'x': b'x' * 7}), Documents.of({'y': b'y' * 3000})]
  batch = RandomCrops(corpora, 5, many, seed=1, weights=[1, 2, 1]).batch(2)
  np.testing.assert_allclose(np.bincount(batch['corpus']) / many, [0.25, 0.5, 0.25], atol=5 * 0.5 / np.sqrt(many))
  for number, byte in enumerate([1, ord('x'), ord('y')]):
    assert (batch['bytes'][batch['corpus'] == number] == byte).all()
  by_size = RandomCrops(corpora[:2], 5, many, seed=1).batch(2)
  assert np.mean(by_size['corpus'] == 0) == pytest.approx(100 / 107, abs=0.02)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (([], 5, 2), 'not empty'),
    ((_numbered(0), 5, 2), 'not empty'),
    ((_numbered(3), 0, 2), 'length 0'),
  ],
)
def test_crops_refuse_what_they_cannot_cut(arguments, message):
  with pytest.raises(ValueError, match=message):
    RandomCrops(*arguments, seed=0)


@pytest.mark.parametrize('weights', [[1], [1, 0]])
def test_weights_must_fit(weights):
  with pytest.raises(ValueError, match='one positive weight a corpus'):
    RandomCrops([_numbered(3), _numbered(4)], 2, 2, seed=0, weights=weights)
