"""Prepared sets are whole or absent: after a kill, in a race, in a folder that refuses, with damaged content."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from perceiver_lib.data import digits, preparation
from perceiver_lib.data.labelled_images import ImageTable

# Slow enough to be killed or overtaken in the middle of writing.
SLOW_PREPARATION = """
import sys, time
from perceiver_lib.data import digits
from perceiver_lib.data.labelled_images import ImageTable
read = ImageTable.read
def slow(table):
  print('reading', file=sys.__stdout__, flush=True)  # TFDS's own chatter is swallowed
  time.sleep(float(sys.argv[2]))
  return read(table)
ImageTable.read = slow
print(len(digits.load(sys.argv[1]).train), 'tensorflow' in sys.modules)
"""


@pytest.fixture(scope='module')
def prepared_digits(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  digits.load(folder)
  return folder


def start(folder, seconds):
  return subprocess.Popen(
    [sys.executable, '-W', 'error', '-c', SLOW_PREPARATION, str(folder), str(seconds)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_killed_preparation_leaves_nothing_that_looks_prepared(tmp_path):
  process = start(tmp_path, 60)
  assert process.stdout.readline() == 'reading\n'
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (tmp_path / 'digits' / '1.0.0').exists()
  [abandoned] = tmp_path.glob('.preparing-*')

  assert len(digits.load(tmp_path).train) == 1157
  assert abandoned.exists()  # could still be at work
  (tmp_path / 'digits').rename(tmp_path / 'elsewhere')
  long_ago = time.time() - 2 * preparation.ABANDONED_AFTER_SECONDS
  os.utime(abandoned, (long_ago, long_ago))
  digits.load(tmp_path)
  assert not list(tmp_path.glob('.preparing-*'))


def test_two_processes_at_once_both_succeed_silently(tmp_path):
  processes = [start(tmp_path, 0.2) for _ in range(2)]
  for process in processes:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.endswith('1157 False\n') and set(out.splitlines()[:-1]) <= {'reading'}
    assert errors == ''
  assert sorted(path.name for path in tmp_path.iterdir()) == ['digits']


def test_a_prepared_set_is_read_not_prepared_again(tmp_path, monkeypatch):
  first = digits.load(tmp_path)
  monkeypatch.setattr(ImageTable, 'read', lambda table: pytest.fail('prepared twice'))
  np.testing.assert_array_equal(first.test.arrays['image'], digits.load(tmp_path).test.arrays['image'])


@pytest.mark.parametrize('damage', ['cut', 'garbage', 'absent'])
@pytest.mark.parametrize('part', ['*train*', '*test*', 'dataset_info.json', 'features.json'])
def test_damage_is_one_sentence_that_says_what_to_delete(prepared_digits, tmp_path, part, damage):
  folder = shutil.copytree(prepared_digits / 'digits' / '1.0.0', tmp_path / 'digits' / '1.0.0')
  for file in folder.glob(part):
    if damage == 'absent':
      file.unlink()
    else:
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 3] if damage == 'cut' else b'\xff' * 70_000)
  with pytest.raises(ValueError, match=r'digits/1\.0\.0 is damaged .*: delete it and prepare it again'):
    digits.load(tmp_path)


def test_argument_then_environment_then_home(tmp_path, monkeypatch):
  monkeypatch.setenv('PERCEIVER_DATA_DIR', str(tmp_path / 'environment'))
  assert preparation.data_directory(tmp_path / 'argument') == tmp_path / 'argument'
  assert preparation.data_directory() == tmp_path / 'environment'
  monkeypatch.delenv('PERCEIVER_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert preparation.data_directory() == tmp_path / '.cache' / 'perceiver_lib' / 'data'


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(PermissionError, match='PERCEIVER_DATA_DIR'):
    digits.load(tmp_path / 'file')


def test_other_content_is_refused_before_and_after_preparation(tmp_path, monkeypatch):
  images, labels = digits.TABLE.read()
  with monkeypatch.context() as patched:
    patched.setattr(ImageTable, 'read', lambda table: (images + np.uint8(1), labels))
    with pytest.raises(ValueError, match=r'digits\.csv\.gz of scikit-learn .* other content'):
      digits.load(tmp_path / 'new')
  assert not (tmp_path / 'new' / 'digits' / '1.0.0').exists()

  digits.load(tmp_path / 'old')
  monkeypatch.setattr(digits, 'TABLE', dataclasses.replace(digits.TABLE, checksum='f' * 64))
  with pytest.raises(ValueError, match=r'delete a damaged folder'):
    digits.load(tmp_path / 'old')


def test_import_is_light():
  heavy = ['jax', 'grain', 'PIL', 'tensorflow_datasets', 'sklearn', 'tensorflow', 'mlxtend']
  code = f'import sys, perceiver_lib.data; print([m for m in {heavy} if m in sys.modules])'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '[]\n'
