"""Ids, folders, files and modes to models, and models to files again."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import types

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from perceiver_lib import PerceiverAR, PerceiverIO, PerceiverIOConfig, load_pretrained
from perceiver_lib.parameters import abstract
from perceiver_lib.pretrained import deepmind, hugging_face, krasserm
from perceiver_lib.training.checkpoints import CheckpointError
from perceiver_lib.training.weights import shapes
from tests.pretrained.golden_files import NAMES, golden
from tests.support import as_users_call

HUGGING_FACE = [name for name in NAMES if name.startswith('hugging_face')]
KINDS = ('language', 'fourier', 'learned', 'convolution', 'flow', 'multimodal')


def arrays_of(model):
  _, _, state = nnx.split(model, nnx.RngState, ...)
  return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


def in_deepminds_names(model, path):
  """A file as DeepMind wrote it: of parameters and state, in two levels."""
  tree = {'params': {}, 'state': {}}
  names = deepmind.table(model.config).names(shapes(model))
  for ours, array in arrays_of(model).items():
    theirs, layout = names[ours]
    module, _, leaf = theirs.rpartition('/')
    tree['state' if 'ema' in module else 'params'].setdefault(module, {})[leaf] = np.array(layout.theirs(array))
  path.write_bytes(pickle.dumps(tree))
  return path


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_weights_go_round_through_hugging_face_and_deepmind_to_the_bit(tmp_path, name):
  case = golden(name)
  folder = case.write(tmp_path)
  models = {mode: load_pretrained(folder, mode=mode) for mode in ('deepmind', 'hugging_face')}
  for mode, model in models.items():
    saved = model.save_pretrained(tmp_path / mode)
    assert_same(load_file(saved / 'model.safetensors'), case.weights)
    again = load_pretrained(saved, mode=mode)
    assert again.config == model.config
    assert_same(arrays_of(again), arrays_of(model))
  if case.kind != 'text':
    path = in_deepminds_names(models['deepmind'], tmp_path / 'original.pystate')
    for mode, model in models.items():
      assert_same(arrays_of(load_pretrained(path, mode=mode, config=model.config)), arrays_of(model))


def test_half_the_numbers_are_loaded_in_float32(tmp_path):
  case = golden('hugging_face_text')
  half = {name: array.astype(np.float16) for name, array in case.weights.items()}
  assert_same(
    arrays_of(load_pretrained(case._replace(weights=half).write(tmp_path))),
    arrays_of(load_pretrained(case.write(tmp_path))),
  )


def deviations(config):
  """What a mode decides."""
  return {
    'activations': {
      layer.activation for layer in (config.cross_attend, config.self_attend, config.decoder.cross_attend)
    },
    'residual': config.decoder.cross_attend.query_residual,
    'padding': None if config.preprocessor is None else config.preprocessor.padding,
  }


@pytest.mark.parametrize(
  ('kind', 'residuals'),
  [('language', (False, False)), ('fourier', (True, True)), ('learned', (False, True)), ('convolution', (True, True)),
   ('flow', (False, False)), ('multimodal', (False, False))],
)  # fmt: skip
def test_a_mode_decides_every_deviation_and_the_presets_are_deepminds(kind, residuals):
  config = hugging_face.released_config(kind)
  assert config.in_mode('deepmind') == config == config.in_mode('hugging_face').in_mode('deepmind')
  for mode, gelu, residual in zip(('deepmind', 'hugging_face'), ('gelu_tanh', 'gelu_erf'), residuals, strict=True):
    padding = mode if kind == 'convolution' else None
    expected = {'activations': {gelu}, 'residual': residual, 'padding': padding}
    assert deviations(config.in_mode(mode)) == expected
  with as_users_call(), pytest.raises(ValueError, match='mode must be deepmind or hugging_face'):
    config.in_mode('torch')


@pytest.mark.parametrize('kind', KINDS)
def test_a_released_file_without_a_config_is_known_by_its_names(kind):
  config = dataclasses.replace(hugging_face.released_config(kind), num_self_attends_per_block=2)
  paths = shapes(abstract(PerceiverIO, config))
  for source in (deepmind, hugging_face):
    names = {theirs for theirs, _ in source.table(config).names(paths).values()}
    assert len(names) == len(paths) and hugging_face.kind_of_names(names, source.MARKS) == kind
  settings = json.loads(json.dumps(hugging_face.settings_of(config, names)))
  assert hugging_face.config_of(settings).in_mode('deepmind') == config


@pytest.mark.parametrize('kind', ['language', 'fourier', 'flow'])
def test_krasserms_re_exports_are_the_published_models(kind):
  """The settings that `convert_config` makes in three files `perceiver/model/*/*/huggingface.py`."""
  heads = 8 if kind == 'language' else 1

  def attention(which, qk=None, v=None, num_heads=heads):
    named = {'heads': num_heads, 'qk_channels': qk, 'v_channels': v}
    widening = {f'{which}_attention_widening_factor': 1}
    return {f'num_{which}_attention_{name}': value for name, value in named.items()} | widening

  wide = (256, 1280) if kind == 'language' else ()
  latents, width, blocks, layers, self_heads = {
    'language': (256, 1280, 1, 26, 8), 'fourier': (512, 1024, 8, 6, 8), 'flow': (2048, 512, 1, 24, 16),
  }[kind]  # fmt: skip
  reading = {
    'language': {'vocab_size': 262, 'max_seq_len': 2048, 'num_input_channels': 768},
    'fourier': {'image_shape': [224, 224, 3], 'num_frequency_bands': 64},
    'flow': {
      'image_shape': [368, 496], 'num_patch_input_channels': 27, 'num_patch_hidden_channels': 64,
      'num_frequency_bands': 64,
    },
  }[kind]  # fmt: skip
  asking = {
    'language': {
      'vocab_size': 262,
      'max_seq_len': 2048,
      'num_output_query_channels': None,
      **attention('cross', 256, 768),
    },
    'fourier': {'num_classes': 1000, 'num_output_query_channels': 1024, **attention('cross')},
    'flow': attention('cross', 512, 512),
  }[kind]
  stack = {'num_self_attention_blocks': blocks, 'num_self_attention_layers_per_block': layers}
  stack |= {'num_cross_attention_layers': 1, 'first_self_attention_block_shared': True}
  settings = {
    'encoder': {**reading, **stack, **attention('cross', *wide), **attention('self', *wide, num_heads=self_heads)},
    'decoder': {**asking, 'cross_attention_residual': kind == 'fourier'},
    'num_latents': latents,
    'num_latent_channels': width,
  }
  assert krasserm.config_of(settings).in_mode('deepmind') == hugging_face.released_config(kind)


def test_a_model_without_a_name_there_is_not_saved(tmp_path):
  config = PerceiverIOConfig.masked_language(
    num_latents=3, num_latent_channels=16, num_self_attends=1, num_channels=16, qk_channels=8, length=5
  )
  model = PerceiverIO(config, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='Hugging Face has no model of this config'):
    model.save_pretrained(tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_another_kind_of_model_and_a_mode_without_meaning_are_refused(tmp_path):
  folder = golden('krasserm_ar_text').write(tmp_path)
  with pytest.raises(ValueError, match='holds a PerceiverAR, no PerceiverIO'):
    PerceiverIO.from_pretrained(folder)
  with pytest.raises(ValueError, match='A Perceiver AR has no modes'):
    PerceiverAR.from_pretrained(folder, mode='deepmind')
  with pytest.raises(ValueError, match='Hugging Face has Perceiver IO only'):
    PerceiverAR.from_pretrained(folder).save_pretrained(tmp_path / 'new')
  (folder / 'config.json').unlink()
  with pytest.raises(CheckpointError, match=r'needs the config\.json of its model beside it'):
    PerceiverAR.from_pretrained(folder)


def hub(monkeypatch, download):
  """A huggingface_hub with this `hf_hub_download`."""
  module, errors = types.ModuleType('huggingface_hub'), types.ModuleType('huggingface_hub.errors')
  module.hf_hub_download = download
  errors.EntryNotFoundError = type('EntryNotFoundError', (OSError,), {})
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
  monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', errors)
  return errors


def test_an_id_is_fetched_from_the_hub_safetensors_first(tmp_path, monkeypatch):
  folder, asked = golden('hugging_face_text').write(tmp_path), []

  def download(name, file):
    asked.append((name, file))
    if not (folder / file).exists():
      raise errors.EntryNotFoundError(file)
    return str(folder / file)

  errors = hub(monkeypatch, download)
  assert load_pretrained('deepmind/some-perceiver').config == load_pretrained(folder).config
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  load_pretrained('deepmind/some-perceiver')
  weights = [file for name, file in asked if file != 'config.json']
  assert weights == ['model.safetensors', 'model.safetensors', 'pytorch_model.bin']


def test_without_network_or_file_it_is_one_sentence(tmp_path, monkeypatch):
  def download(name, file):
    raise ConnectionError('no route')

  hub(monkeypatch, download)
  with pytest.raises(
    FileNotFoundError, match=r'could not be fetched from the hub \(ConnectionError\); connect to a network'
  ):
    load_pretrained('deepmind/language-perceiver')
  with pytest.raises(FileNotFoundError, match='There is no weight file or folder none'):
    load_pretrained('none')
  with pytest.raises(FileNotFoundError, match=r'holds none of model\.safetensors, pytorch_model\.bin'):
    load_pretrained(tmp_path)
