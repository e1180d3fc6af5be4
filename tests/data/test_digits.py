"""The digits are the ones scikit-learn publishes, and no filled-in form lies on two sides of the split."""

import numpy as np
from sklearn.datasets import load_digits

from perceiver_lib.data import digits

FORM_OPENING = [*range(10)] * 3 + [0, 9, 5, 5, 6, 5]


def test_content_is_that_of_scikit_learn(tmp_path):
  data = digits.load(tmp_path)
  parts = [getattr(data, name).arrays for name in ('train', 'validation', 'test')]
  reference = load_digits()
  np.testing.assert_array_equal(np.concatenate([part['image'] for part in parts])[..., 0], reference.images)
  np.testing.assert_array_equal(np.concatenate([part['label'] for part in parts]), reference.target)
  assert parts[0]['image'].dtype == np.uint8
  np.testing.assert_array_equal(np.concatenate([part['id'] for part in parts]), np.arange(1797))


def test_every_split_begins_with_a_new_form(tmp_path):
  data = digits.load(tmp_path)
  for name in ('train', 'validation', 'test'):
    assert getattr(data, name).arrays['label'][: len(FORM_OPENING)].tolist() == FORM_OPENING
  assert data.provenance.counts == {'train': 1157, 'validation': 258, 'test': 382}
  assert data.provenance.kind == 'real'
