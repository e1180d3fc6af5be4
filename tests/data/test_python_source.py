"""The interpreter's own library, split so that copies stay together."""

import sys

import pytest

from perceiver_lib.data import python_source


@pytest.mark.parametrize(('one', 'other'), [('_pyio', 'io'), ('_pydecimal', 'decimal'), ('tokenize', 'lib2to3')])
def test_copies_are_in_one_split(one, other):
  assert python_source.split_of(one) == python_source.split_of(other)


def test_modules_are_whole_and_tests_are_left_out():
  data = python_source.load()
  modules = {
    split: {name.split('/')[0].removesuffix('.py') for name in getattr(data, split).names}
    for split in ('train', 'validation', 'test')
  }
  assert not modules['train'] & (modules['validation'] | modules['test'])
  assert not modules['validation'] & modules['test']
  names = [name for split in ('train', 'validation', 'test') for name in getattr(data, split).names]
  assert not any('test' in name.split('/')[:-1] or 'site-packages' in name for name in names)
  assert f'{sys.version_info.major}.{sys.version_info.minor}.' in data.provenance.source
  total = sum(corpus.num_bytes for corpus in (data.train, data.validation, data.test))
  assert total > 4_000_000
  assert data.train.num_bytes > 0.75 * total
  assert min(data.validation.num_bytes, data.test.num_bytes) > 0.01 * total
