"""Files of other programs, read without them, and files that were damaged, mixed up or meant to harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perceiver_lib import load_pretrained
from perceiver_lib.pretrained.files import read_arrays
from perceiver_lib.training.checkpoints import CheckpointError
from tests.pretrained.golden_files import GOLDEN, golden

NAME = 'perceiver.encoder.self_attends.1.mlp.dense1.weight'


class Harm:
  """What a pickle of it does to whoever loads it: `touch harmed`, here."""

  def __reduce__(self):
    return os.system, ('touch harmed',)


class Forged:
  """An array of objects whose pointers are made from bytes."""

  def __reduce__(self):
    return np.ndarray, ((1,), np.dtype(object), b'A' * 8)


class Called:
  """NumPy's array, called for forged pointers with a type that looks like numbers."""

  def __reduce__(self):
    return np.ndarray, ((1,), 'O', b'A' * 8)


class Harmless:
  """Looks harmless, and would build an object of any class."""

  def __reduce__(self):
    return __import__, ('antigravity',)


def damaged(folder: Path) -> None:
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])


def cut_to_its_head(folder: Path) -> None:
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:11])


def changed(change):
  def damage(folder: Path) -> None:
    arrays = load_file(folder / 'model.safetensors')
    change(arrays)
    save_file(arrays, folder / 'model.safetensors')

  return damage


def pickled(content):
  def damage(folder: Path) -> None:
    (folder / 'model.safetensors').write_bytes(pickle.dumps(content() if callable(content) else content))

  return damage


def in_a_zip(content: bytes):
  def damage(folder: Path) -> None:
    with zipfile.ZipFile(folder / 'model.safetensors', 'w') as archive:
      archive.writestr('archive/data.pkl', content)

  return damage


def beyond_its_storage(folder: Path) -> None:
  """The sizes 3 x 4 of tensors, which lie in 12 numbers, become 9 x 9."""
  with zipfile.ZipFile(GOLDEN / 'tensors.bin') as whole, zipfile.ZipFile(folder / 'model.safetensors', 'w') as archive:
    for name in whole.namelist():
      archive.writestr(name, whole.read(name).replace(b'K\x03K\x04', b'K\x09K\x09'))


HARM = {
  'truncated': (damaged, 'is damaged, or neither safetensors nor a pickle of arrays: .* Fetch it again'),
  'only a head': (cut_to_its_head, 'is damaged'),
  'swapped shape': (
    changed(
      lambda arrays: arrays.update({'perceiver.embeddings.latents': arrays['perceiver.embeddings.latents'].T.copy()})
    ),
    r"has 'perceiver.embeddings.latents' of shape \(16, 5\); the model has \(5, 16\)",
  ),
  'missing key': (
    changed(lambda arrays: arrays.pop(NAME)),
    rf"differ in 1 arrays: the file lacks '{NAME}' of shape \(16, 16\)",
  ),
  'extra key': (
    changed(lambda arrays: arrays.update({'perceiver.more': np.zeros((2, 3), np.float32)})),
    r"differ in 1 arrays: the model lacks 'perceiver.more' of shape \(2, 3\)",
  ),
  'another model': (
    changed(lambda arrays: [arrays.pop(name) for name in list(arrays)] and arrays.update(w=np.zeros(3, np.float32))),
    "no Perceiver of Hugging Face, DeepMind or krasserm: none of its 1 arrays .* the first is 'w'",
  ),
  'pickle that runs a command': (pickled(Harm()), 'asks for posix.system, which is neither .*: nothing of it was run'),
  'pickle that imports': (pickled({'a': Harmless()}), 'asks for builtins.__import__'),
  'pickle of objects': (pickled({'a': np.array([{}, []], object)}), "arrays hold numbers; got the type 'O8'"),
  'pickle of forged pointers': (pickled({'a': Forged()}), "arrays hold numbers; got the type 'O8'"),
  'pickle that calls a type': (pickled({'a': Called()}), 'is damaged'),
  'pickle of a number': (pickled(3), "holds 'its content', which is no array of numbers"),
  'pickle cut off': (
    lambda folder: (folder / 'model.safetensors').write_bytes(pickle.dumps(np.zeros(99))[:-50]),
    'is damaged',
  ),
  'zip that runs a command': (in_a_zip(pickle.dumps(Harm())), 'asks for posix.system'),
  'zip without content': (in_a_zip(b''), 'is damaged'),
  'tensor beyond its storage': (
    beyond_its_storage,
    r'a tensor of size \(9, 9\) and .* exceeds its storage of 12 numbers',
  ),
  'broken config.json': (lambda folder: (folder / 'config.json').write_text('{'), r'config\.json is damaged'),
  'config.json that is a list': (
    lambda folder: (folder / 'config.json').write_text('[1]'),
    r'config\.json is damaged',
  ),
  'unknown model': (
    lambda folder: (folder / 'config.json').write_text(json.dumps({'architectures': ['PerceiverForGames']})),
    'config.json must name one of PerceiverForMaskedLM, .*; got PerceiverForGames',
  ),
}


@pytest.mark.parametrize('harm', HARM)
def test_a_harmful_file_is_one_sentence_and_nothing_of_it_runs(tmp_path, monkeypatch, harm):
  monkeypatch.chdir(tmp_path)
  folder = golden('hugging_face_text').write(tmp_path)
  damage, sentence = HARM[harm]
  damage(folder)
  with pytest.raises(CheckpointError, match=sentence) as caught:
    load_pretrained(folder)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'harmed').exists() and 'antigravity' not in sys.modules


def test_what_torch_saved_is_read_without_torch():
  arrays = read_arrays(GOLDEN / 'tensors.bin')
  numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
  expected = {'whole': numbers, 'turned': numbers[1:].T, 'half': numbers, 'brain': numbers, 'count': np.int64(7)}
  assert dict(arrays.shapes) == {name: array.shape for name, array in expected.items()}
  for name, array in expected.items():
    np.testing.assert_array_equal(arrays.take(name).astype(array.dtype), array)


@pytest.mark.parametrize('protocol', [2, 5])
def test_haikus_mappings_are_read_without_haiku(tmp_path, monkeypatch, protocol):
  module = types.ModuleType('haiku._src.data_structures')

  class FlatMapping:
    def __init__(self, mapping):
      self.mapping = mapping

    def __reduce__(self):
      return FlatMapping, (self.mapping,)

  FlatMapping.__module__, FlatMapping.__qualname__, module.FlatMapping = module.__name__, 'FlatMapping', FlatMapping
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  tree = {
    'params': FlatMapping({'a/~/b': FlatMapping({'w': array})}),
    'state': FlatMapping({'c': {'average': array[0]}}),
  }
  written = io.BytesIO()
  with monkeypatch.context() as patch:
    for name in ('haiku', 'haiku._src', 'haiku._src.data_structures'):
      patch.setitem(sys.modules, name, module if name.endswith('structures') else types.ModuleType(name))
    pickle.dump(tree, written, protocol=protocol)
  path = tmp_path / 'model.pystate'
  path.write_bytes(written.getvalue())
  arrays = read_arrays(path)
  assert dict(arrays.shapes) == {'a/~/b/w': (2, 3), 'c/average': (3,)}
  np.testing.assert_array_equal(arrays.take('a/~/b/w'), array)
