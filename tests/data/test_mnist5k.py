"""The split of MNIST-5k is stratified, complete, without overlap, and the same wherever it is prepared."""

import numpy as np

from perceiver_lib.data import mnist5k

SIZES = {'train': 350, 'validation': 50, 'test': 100}


def test_split_is_stratified_and_complete(tmp_path):
  data = mnist5k.load(tmp_path)
  ids = np.concatenate([getattr(data, name).arrays['id'] for name in SIZES])
  np.testing.assert_array_equal(np.sort(ids), np.arange(5000))
  for name, size in SIZES.items():
    assert np.bincount(getattr(data, name).arrays['label']).tolist() == [size] * 10
  assert data.provenance.counts == {'train': 3500, 'validation': 500, 'test': 1000}


def test_examples_are_the_rows_of_the_file(tmp_path):
  images, labels = mnist5k.TABLE.read()
  for name, part in vars(mnist5k.load(tmp_path)).items():
    if name in SIZES:
      np.testing.assert_array_equal(part.arrays['image'], images[part.arrays['id']])
      np.testing.assert_array_equal(part.arrays['label'], labels[part.arrays['id']])
  # Sorted by class, so a mix-up of rows would show in the labels; ink tells images apart from empty ones.
  assert np.all(np.diff(labels) >= 0) and images.max() == 255


def test_split_never_changes():
  rows = mnist5k.TABLE.split(mnist5k.TABLE.read()[1])
  assert {name: part[:5].tolist() for name, part in rows.items()} == {
    'train': [1, 2, 3, 4, 5],
    'validation': [0, 11, 23, 36, 41],
    'test': [9, 25, 28, 31, 32],
  }
