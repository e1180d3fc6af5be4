from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from perceiver_lib.parameters import abstract, filled
from perceiver_lib.training.checkpoints import CheckpointError
from perceiver_lib.training.weights import load_record, load_weights, save_weights


class Model(nnx.Module):
  def __init__(self, width=11, dtype=jnp.float32, *, rngs):
    self.layers = nnx.List([nnx.Linear(7, width, param_dtype=dtype, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)])


class Dropped(Model):
  """With random numbers of its own, which are no weights."""

  def __init__(self, *, rngs):
    super().__init__(rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)


SHAPES = {
  'layers.0.bias': [11],
  'layers.0.kernel': [7, 11],
  'layers.1.bias': [11],
  'layers.1.mean': [11],
  'layers.1.scale': [11],
  'layers.1.var': [11],
}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('target', ['made', 'abstract'])
def test_weights_round_trip_to_the_bit_under_their_paths(tmp_path, dtype, target):
  saved = filled(Model(dtype=dtype, rngs=nnx.Rngs(0)), scale=0.3)
  saved.layers[1].mean[...] += 2
  path = save_weights(saved, tmp_path / 'new' / 'model.safetensors')
  with safe_open(path, framework='np') as stored:
    assert {name: stored.get_slice(name).get_shape() for name in stored.keys()} == SHAPES  # noqa: SIM118
  other = abstract(Model, 11, dtype) if target == 'abstract' else Model(dtype=dtype, rngs=nnx.Rngs(1))
  loaded = load_weights(other, path)
  flat = (nnx.to_flat_state(nnx.state(model)) for model in (loaded, saved))
  for (name, found), (expected_name, expected) in zip(*flat, strict=True):
    assert name == expected_name and found.dtype == expected.dtype and type(found) is type(expected)
    np.testing.assert_array_equal(found[...], expected[...])
  if target == 'made':
    assert not np.array_equal(other.layers[0].kernel[...], saved.layers[0].kernel[...])


def test_random_state_is_kept_and_not_stored(tmp_path):
  saved, other = Dropped(rngs=nnx.Rngs(0)), Dropped(rngs=nnx.Rngs(1))
  loaded = load_weights(other, save_weights(saved, tmp_path / 'model.safetensors'))
  assert loaded.dropout.rngs.key[...] == other.dropout.rngs.key[...]
  np.testing.assert_array_equal(loaded.layers[0].kernel[...], saved.layers[0].kernel[...])


def test_half_the_numbers_are_half_the_size_and_come_back_in_the_models_own(tmp_path):
  model = Model(width=400, rngs=nnx.Rngs(0))
  whole, half = (
    save_weights(model, tmp_path / name, dtype=dtype) for name, dtype in (('whole', None), ('half', jnp.float16))
  )
  assert 0.45 < half.stat().st_size / whole.stat().st_size < 0.55
  loaded = load_weights(model, half).layers[0].kernel
  assert loaded.dtype == jnp.float32
  np.testing.assert_array_equal(loaded[...], model.layers[0].kernel[...].astype(jnp.float16).astype(jnp.float32))


def test_a_file_says_how_its_weights_came_about_or_that_it_does_not(tmp_path):
  model = Model(rngs=nnx.Rngs(0))
  assert load_record(save_weights(model, tmp_path / 'kept.safetensors', record={'loss': [3, None]})) == {
    'loss': [3, None]
  }
  with pytest.raises(CheckpointError, match='does not say how its weights came about'):
    load_record(save_weights(model, tmp_path / 'plain.safetensors'))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
  model = Model(rngs=nnx.Rngs(0))
  path = save_weights(model, tmp_path / 'model.safetensors')
  with pytest.raises(CheckpointError, match=r"'layers\.0\.bias' of shape \(11,\); the model has \(13,\)"):
    load_weights(Model(13, rngs=nnx.Rngs(0)), path)
  biased, plain = (nnx.Linear(7, 11, use_bias=bias, rngs=nnx.Rngs(0)) for bias in (True, False))
  for saved, target, who in ((biased, plain, 'model'), (plain, biased, 'file')):
    other = save_weights(saved, tmp_path / 'layer.safetensors')
    with pytest.raises(CheckpointError, match=rf"differ in 1 arrays: the {who} lacks 'bias' of shape \(11,\)"):
      load_weights(target, other)
  with pytest.raises(FileNotFoundError, match='write one with save_weights'):
    load_weights(model, tmp_path / 'none.safetensors')


@pytest.mark.parametrize(
  'damage',
  [
    lambda old: old[:-100],
    lambda old: old[:4],
    lambda old: b'',
    lambda old: b'\xff' * 8 + old[8:],
    lambda old: b'\x93NUMPY\x01\x00v\x00 an array of another format',
  ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
  model = Model(rngs=nnx.Rngs(0))
  path = save_weights(model, tmp_path / 'model.safetensors')
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(CheckpointError, match=r'is damaged or no safetensors file: .* Fetch it again\.'):
    load_weights(model, path)


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
  path = save_weights(Model(rngs=nnx.Rngs(0)), tmp_path / 'model.safetensors')
  before, write = path.read_bytes(), Path.write_bytes

  def full(self, data):
    write(self, data[:10])
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(Path, 'write_bytes', full)
  with pytest.raises(CheckpointError, match='No space left on device'):
    save_weights(Model(rngs=nnx.Rngs(1)), path)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
