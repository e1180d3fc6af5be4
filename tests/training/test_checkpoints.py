from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.training import checkpoints
from perceiver_lib.training.checkpoints import CheckpointError, CheckpointStore


def make_state(seed=0):
  return {
    'kernel': jax.random.normal(jax.random.key(seed), (7, 11)),
    'half': jnp.arange(5, dtype=jnp.bfloat16),
    'key': jax.random.key(seed + 1),
    'step': jnp.int32(seed),
  }


def abstract(state):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def assert_same(a, b):
  a, b = (jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == b['key'].dtype else x, tree) for tree in (a, b))
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def store(tmp_path):
  """A store with two good checkpoints."""
  store = CheckpointStore(tmp_path, 'fingerprint')
  for step in (10, 20):
    store.save(step, make_state(step), {'history': [{'loss': 0.1 * step}]})
  return store


def test_round_trip_to_the_bit(store):
  found, notes = store.restore(abstract(make_state()))
  assert found.step == 20 and notes == []
  assert found.record == {'history': [{'loss': 0.1 * 20}]}
  assert_same(found.state, make_state(20))


def test_empty_store_starts_from_scratch(tmp_path):
  assert CheckpointStore(tmp_path, 'f').restore(abstract(make_state())) == (None, [])


def test_keeps_the_newest(store):
  store.save(30, make_state(30), {})
  assert [path.name for path in store.paths()] == ['step_00000020', 'step_00000030']


def largest_file(path):
  return max((file for file in path.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)


def flip_a_bit(path):
  file = largest_file(path / 'state')
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def truncate(path):
  file = largest_file(path / 'state')
  file.write_bytes(file.read_bytes()[:-7])


def remove_a_file(path):
  largest_file(path / 'state').unlink()


def garble_manifest(path):
  (path / 'manifest.json').write_text('{"step": 2')


def another_shape(path):
  (path / 'manifest.json').write_text('[]')


def no_text(path):
  (path / 'manifest.json').write_bytes(b'\xff')


def changed(**fields):
  def damage(path):
    manifest = json.loads((path / 'manifest.json').read_text())
    (path / 'manifest.json').write_text(json.dumps(manifest | fields))

  return damage


def of_another_step(path):
  shutil.rmtree(path)
  shutil.copytree(path.with_name('step_00000010'), path)


DAMAGE = [flip_a_bit, truncate, remove_a_file, garble_manifest, another_shape, no_text, of_another_step]
DAMAGE += [changed(fingerprint='another'), changed(step=22), changed(record='{}'), changed(structure=[])]


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_checkpoint_is_kept_aside_and_the_one_before_used(store, damage):
  damage(store.paths()[-1])
  found, notes = store.restore(abstract(make_state()))
  assert found.step == 10
  assert_same(found.state, make_state(10))
  assert len(notes) == 1 and notes[0].startswith('Checkpoint step_00000020 cannot be used: ')
  assert (store.folder / 'unusable_step_00000020').is_dir()
  store.save(20, make_state(20), {})
  assert store.restore(abstract(make_state()))[0].step == 20


@pytest.mark.parametrize('change', ['shape', 'missing', 'extra'])
def test_state_of_another_structure_is_refused(store, change):
  state = make_state()
  if change == 'shape':
    state['kernel'] = jnp.zeros((7, 13))
  elif change == 'missing':
    state['bias'] = jnp.zeros(3)
  else:
    del state['half']
  found, notes = store.restore(abstract(state))
  assert found is None and len(notes) == 2 and all('its arrays are others, such as' in note for note in notes)
  assert len(list(store.folder.glob('unusable_*'))) == 2


def test_other_settings_live_beside_each_other(store):
  other = CheckpointStore(store.root, 'another fingerprint')
  found, notes = other.restore(abstract(make_state()))
  assert found is None and 'those of 1 other setting(s) are kept: fingerprint' in notes[0]
  other.save(10, make_state(7), {})
  assert_same(store.restore(abstract(make_state()))[0].state, make_state(20))
  assert_same(other.restore(abstract(make_state()))[0].state, make_state(7))


PROCESS = """
import os, resource, signal, sys
sys.path[:0] = sys.argv[1:3]
import jax
from orbax.checkpoint import v1 as ocp
import test_checkpoints
from perceiver_lib.training import checkpoints
store = checkpoints.CheckpointStore(sys.argv[3], 'fingerprint')
if sys.argv[4] == 'full':
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  state = test_checkpoints.make_state(30) | {'large': jax.random.normal(jax.random.key(0), (300_000,))}
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
  try:
    store.save(30, state, {})
  except checkpoints.CheckpointError as error:
    print(error)
else:
  def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
  if sys.argv[4] == 'before manifest':
    checkpoints._checksums = die
  else:
    os.rename = die
  store.save(30, test_checkpoints.make_state(30), {})
"""


def run_process(store, what):
  root = Path(__file__).parent
  arguments = [sys.executable, '-c', PROCESS, str(root), str(root.parents[1]), str(store.root), what]
  return subprocess.run(arguments, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('moment', ['before manifest', 'before rename'])
def test_killed_while_writing_leaves_the_one_before(store, moment):
  assert run_process(store, moment).returncode == -signal.SIGKILL
  assert list(store.folder.glob('.writing_*'))
  found, notes = store.restore(abstract(make_state()))
  assert found.step == 20 and notes == []
  store.save(30, make_state(30), {})
  assert_same(store.restore(abstract(make_state()))[0].state, make_state(30))
  assert not list(store.folder.glob('.writing_*'))


def test_full_disk_is_one_sentence_and_loses_nothing(store):
  """A limit on the size of files fails the write as a full disk does."""
  process = run_process(store, 'full')
  assert 'could not be written at step 30: File too large.' in process.stdout, process.stderr
  assert 'The last good one is step_00000020' in process.stdout and process.stdout.count('\n') == 1
  assert store.restore(abstract(make_state()))[0].step == 20


@pytest.mark.parametrize('code', [errno.EMFILE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize('place', ['manifest', 'files', 'arrays'])
def test_a_disk_that_fails_retires_no_checkpoint(store, monkeypatch, code, place):
  """An error of the system says nothing about the checkpoint, also where orbax hides it in a text."""
  from orbax.checkpoint import v1 as ocp

  def fail(*_):
    raise (
      ValueError(f'tensorstore: {OSError(code, "some words", "some/path")}') if place == 'arrays' else OSError(code, '')
    )

  target = {'manifest': (checkpoints, 'read_json'), 'files': (checkpoints, '_checksums'), 'arrays': (ocp, 'load')}[
    place
  ]
  before = store.paths()
  with monkeypatch.context() as patch, pytest.raises(CheckpointError) as raised:
    patch.setattr(*target, fail)
    store.restore(abstract(make_state()))
  assert f'could not be read: {os.strerror(code)}. The last good one is step_00000020. Mend that' in str(raised.value)
  assert raised.value.__suppress_context__ and store.paths() == before
  assert store.restore(abstract(make_state()))[0].step == 20


def test_a_checkpoint_that_orbax_left_incomplete_is_kept_aside(store, monkeypatch):
  from orbax.checkpoint import v1 as ocp

  load = ocp.load

  def incomplete(path, state):
    if path.parent.name == 'step_00000020':
      raise ValueError('NOT_FOUND: Error opening "zarr3" driver: Metadata at "kernel/zarr.json" does not exist')
    return load(path, state)

  monkeypatch.setattr(ocp, 'load', incomplete)
  found, [note] = store.restore(abstract(make_state()))
  assert found.step == 10 and 'step_00000020 cannot be used: it was not written whole. It is kept as unusable' in note


def test_killed_while_deleting_leaves_nothing_for_ever(store, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.shutil, 'rmtree', lambda *_, **__: None)
    store.save(30, make_state(30), {})
  assert (store.folder / '.deleting_step_00000010').is_dir()
  assert [path.name for path in store.paths()] == ['step_00000020', 'step_00000030']
  store.save(40, make_state(40), {})
  assert sorted(path.name for path in store.folder.iterdir()) == ['step_00000030', 'step_00000040']


def test_one_training_at_a_time_works_in_a_folder(store):
  again, other = CheckpointStore(store.root, 'fingerprint'), CheckpointStore(store.root, 'of other settings')
  with pytest.raises(ZeroDivisionError), checkpoints.releasing_locks():
    store.lock()
    other.lock()
    with pytest.raises(CheckpointError, match='Another training with these settings is writing'):
      again.lock()
    1 / 0  # noqa: B018 (also an error, whose traceback keeps the store, lets go)
  with checkpoints.releasing_locks():
    again.lock()


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(CheckpointError, match=r'cannot be written to .*: Not a directory'):
    CheckpointStore(tmp_path / 'file' / 'run', 'f')


def test_fingerprint_changes_with_every_setting():
  @dataclasses.dataclass(frozen=True)
  class Config:
    width: int = 3
    inner: tuple = (1, np.float32(0.5))

  same = checkpoints.fingerprint(config=Config(), data='abc')
  assert same == checkpoints.fingerprint(data='abc', config=Config())
  different = {
    same,
    checkpoints.fingerprint(config=Config(width=5), data='abc'),
    checkpoints.fingerprint(config=Config(), data='abd'),
    checkpoints.fingerprint(config=Config(inner=(1, 0.25)), data='abc'),
  }
  assert len(different) == 4
  with pytest.raises(TypeError, match='Pass the settings it was made from'):
    checkpoints.fingerprint(optimizer=lambda: None)
