"""Models of transformers and of krasserm/perceiver-io with random weights: what the golden files and `make parity` use.

Needs torch and transformers; for krasserm's, `pip install --no-deps --ignore-requires-python perceiver-io==0.11.0` too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from tests.pretrained.cases import Inputs, draw

ARCHITECTURES = {
  'language': transformers.PerceiverForMaskedLM,
  'text': transformers.PerceiverForSequenceClassification,
  'learned': transformers.PerceiverForImageClassificationLearned,
  'convolution': transformers.PerceiverForImageClassificationConvProcessing,
  'fourier': transformers.PerceiverForImageClassificationFourier,
  'flow': transformers.PerceiverForOpticalFlow,
  'multimodal': transformers.PerceiverForMultimodalAutoencoding,
}
_SMALL = {
  'num_latents': 5, 'd_latents': 16, 'num_self_attends_per_block': 2, 'num_blocks': 2, 'num_self_attention_heads': 2,
  'num_cross_attention_heads': 2, 'qk_channels': 8, 'v_channels': 16, 'num_labels': 7,
}  # fmt: skip
SMALL: Mapping[str, dict[str, Any]] = {
  'language': _SMALL | {'d_model': 24, 'vocab_size': 19, 'max_position_embeddings': 11},
  'text': _SMALL | {'d_model': 24, 'vocab_size': 19, 'max_position_embeddings': 11},
  'learned': _SMALL | {'d_model': 512, 'image_size': 3},
  'convolution': _SMALL | {'d_model': 322, 'image_size': 14},
  'fourier': _SMALL | {'d_model': 261, 'num_cross_attention_heads': 1},
  'flow': _SMALL | {'d_model': 322, 'train_size': (6, 5)},
  'multimodal': _SMALL | {
    'd_model': 405, 'num_frames': 2, 'image_size': 2, 'audio_samples_per_frame': 32, 'output_shape': (1, 2, 8, 8),
    'output_num_channels': 13, '_label_trainable_num_channels': 6,
  },
}  # fmt: skip
_IMAGENET = {
  'num_latents': 512, 'd_latents': 1024, 'num_blocks': 8, 'num_self_attends_per_block': 6,
  'num_self_attention_heads': 8, 'num_cross_attention_heads': 1, 'num_labels': 1000, 'image_size': 224,
}  # fmt: skip
FULL: Mapping[str, dict[str, Any]] = {
  'language': {'qk_channels': 256, 'v_channels': 1280},
  'learned': _IMAGENET | {'d_model': 512},
  'convolution': _IMAGENET | {'d_model': 322},
  'fourier': _IMAGENET | {'d_model': 261},
  'flow': {
    'num_latents': 2048, 'd_latents': 512, 'd_model': 322, 'num_self_attends_per_block': 24,
    'num_self_attention_heads': 16, 'num_cross_attention_heads': 1,
  },
  'multimodal': {
    'num_latents': 784, 'd_latents': 512, 'd_model': 704, 'num_self_attends_per_block': 8,
    'num_self_attention_heads': 8, 'num_cross_attention_heads': 1, 'num_labels': 700,
  },
}  # fmt: skip


class Case(NamedTuple):
  """A model's weights and `config.json`, an example, and what the model makes of it."""

  weights: dict[str, np.ndarray]
  settings: dict[str, Any]
  inputs: Inputs
  answer: dict[str, np.ndarray]


def _with_weights(model: torch.nn.Module, *, small: bool) -> None:
  random = np.random.default_rng(0)
  buffers = ('inv_freq', 'position_encoding.position_encoding')
  shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(buffers)}
  state = {name: torch.from_numpy(draw(name, shape, random, small=small)) for name, shape in shapes.items()}
  model.load_state_dict(state, strict=False)
  model.eval()


def _arrays(module: torch.nn.Module, prefix: str = '') -> dict[str, np.ndarray]:
  return {f'{prefix}{name}': tensor.numpy() for name, tensor in module.state_dict().items()}


def example(kind: str, sizes: Mapping[str, Any], *, batch_size: int = 2) -> Inputs:
  """Random inputs; texts have padding behind them, and of the multimodal outputs a few are asked for."""
  random, b = np.random.default_rng(1), batch_size
  if kind in ('language', 'text'):
    length = sizes.get('max_position_embeddings', 2048)
    valid = np.arange(length) < np.array([[length], [length * 2 // 3]])[:b]
    return {'ids': random.integers(0, sizes.get('vocab_size', 262), (b, length)).astype(np.int32), 'valid': valid}
  if kind in ('learned', 'convolution', 'fourier'):
    size = sizes.get('image_size')
    shape = (size, size) if size else (6, 5)
    return {'image': random.normal(size=(b, *shape, 3)).astype(np.float32)}
  if kind == 'flow':
    return {'frames': random.normal(size=(b, 2, *sizes.get('train_size', (368, 496)), 27)).astype(np.float32)}
  frames, rows, columns = sizes.get('output_shape', (1, 16, 224, 224))[1:]
  samples = frames * sizes.get('audio_samples_per_frame', 1920)
  return {
    'image': random.normal(size=(b, frames, rows, columns, 3)).astype(np.float32),
    'audio': random.normal(size=(b, samples)).astype(np.float32),
    'label': random.normal(size=(b, sizes['num_labels'])).astype(np.float32),
    'image_points': random.choice(frames * rows * columns, min(128, frames * rows), replace=False),
    'audio_points': random.choice(samples // 16, min(128, samples // 32), replace=False),
    'audio_read_at': torch.linspace(-1, 1, samples // 16)[:, None].numpy(),
  }


@torch.no_grad()
def hugging_face(kind: str, *, small: bool, batch_size: int = 2) -> Case:
  """A model of transformers by kind, small or of the published size."""
  sizes = (SMALL if small else FULL)[kind]
  config = transformers.PerceiverConfig(**sizes)
  model = ARCHITECTURES[kind](config)
  _with_weights(model, small=small)
  inputs = example(kind, sizes, batch_size=batch_size)
  layers = []
  encoder = model.perceiver.encoder
  for layer in (encoder.cross_attention, *encoder.self_attends):
    layer.register_forward_hook(lambda _, __, output: layers.append(output[0].numpy()))
  tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
  if kind in ('language', 'text'):
    output = model(inputs=tensors['ids'].long(), attention_mask=tensors['valid'].long())
  elif kind in ('learned', 'convolution', 'fourier'):
    output = model(inputs=tensors['image'].permute(0, 3, 1, 2))
  elif kind == 'flow':
    output = model(inputs=tensors['frames'].permute(0, 1, 4, 2, 3))
  else:
    output = model(
      inputs={
        'image': tensors['image'].permute(0, 1, 4, 2, 3),
        'audio': tensors['audio'][..., None],
        'label': tensors['label'],
      },
      subsampled_output_points={'image': tensors['image_points'], 'audio': tensors['audio_points'], 'label': None},
    )
  logits = output.logits
  answer = (
    {f'outputs.{name}': t.numpy() for name, t in logits.items()}
    if kind == 'multimodal'
    else {'outputs': logits.numpy()}
  )
  settings = json.loads(config.to_json_string()) | {'architectures': [type(model).__name__]}
  if kind == 'convolution':
    settings['convolution_image_size'] = sizes['image_size']
  return Case(_arrays(model), settings, inputs, {'layers': np.stack(layers), **answer})


def _backend(path: str) -> types.ModuleType:
  """A module of perceiver-io by itself; the packages around it import all of PyTorch Lightning."""
  root = Path(importlib.util.find_spec('perceiver').submodule_search_locations[0])
  name = f'perceiver_backend_{path.replace("/", "_")}'
  spec = importlib.util.spec_from_file_location(name, root / 'model' / path / 'backend.py')
  sys.modules[name] = module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


KRASSERM = ('ar_text', 'ar_music', 'language', 'text', 'fourier', 'flow')


@torch.no_grad()
def krasserm(kind: str, *, small: bool = True) -> Case:
  """A model of perceiver-io by kind; at full size only Perceiver AR, as the text model that was released."""
  fairscale = types.ModuleType('fairscale')
  fairscale.nn = types.ModuleType('fairscale.nn')
  fairscale.nn.checkpoint_wrapper = lambda layer, **_: layer
  sys.modules |= {'fairscale': fairscale, 'fairscale.nn': fairscale.nn}
  from perceiver.model.core import CausalSequenceModel, CausalSequenceModelConfig

  if kind.startswith('ar'):
    music = kind == 'ar_music'
    length, latents = (12, 5) if small else (1024, 512)
    sizes = {'num_channels': 16, 'num_heads': 2, 'num_self_attention_layers': 3, 'vocab_size': 19}
    if not small:
      sizes = {'num_channels': 1280, 'num_heads': 10, 'num_self_attention_layers': 20, 'vocab_size': 32_000}
    config = CausalSequenceModelConfig(
      max_seq_len=length, max_latents=latents, output_norm=not music, output_bias=music, abs_pos_emb=music,
      num_self_attention_rotary_layers=1 if music else -1, **sizes,
    )  # fmt: skip
    model = CausalSequenceModel(config)
    _with_weights(model, small=small)
    random = np.random.default_rng(1)
    valid = np.arange(length) >= np.array([[0], [length // 4]])
    inputs = {'ids': random.integers(0, config.vocab_size, (2, length)).astype(np.int32), 'valid': valid}
    output = model(
      torch.from_numpy(inputs['ids']).long(), prefix_len=length - latents, pad_mask=torch.from_numpy(~valid)
    )
    answer = {'outputs': output.logits.numpy()}
  else:
    model, config = _krasserm_io(kind)
    _with_weights(model, small=True)
    sizes = {'max_position_embeddings': 11, 'vocab_size': 19, 'train_size': (6, 5)}
    inputs, layers = example(kind, sizes), []
    encoder = model[0]
    for layer in (encoder.cross_attn_1, *encoder.self_attn_1):
      layer.register_forward_hook(lambda _, __, output: layers.append(output.last_hidden_state.numpy()))
    if kind in ('language', 'text'):
      output = model(torch.from_numpy(inputs['ids']).long(), pad_mask=torch.from_numpy(~inputs['valid']))
    elif kind == 'fourier':
      output = model(torch.from_numpy(inputs['image']))
    else:
      output = model(torch.from_numpy(inputs['frames']).permute(0, 1, 4, 2, 3))
    answer = {'layers': np.stack(layers), 'outputs': output.numpy()}
  settings = {'model_config': dataclasses.asdict(config)}
  return Case(_arrays(model, 'backend_model.'), json.loads(json.dumps(settings)), inputs, answer)


def _krasserm_io(kind: str) -> tuple[torch.nn.Module, Any]:
  from perceiver.model.core import ClassificationDecoderConfig, PerceiverIOConfig
  from perceiver.model.text.common import TextEncoderConfig

  encoder = {'num_self_attention_heads': 2, 'num_self_attention_layers_per_block': 2, 'num_self_attention_blocks': 2}
  one_head = {'num_cross_attention_heads': 1}
  text = TextEncoderConfig(
    vocab_size=19, max_seq_len=11, num_input_channels=24,
    num_cross_attention_heads=2, num_cross_attention_qk_channels=8,
    num_cross_attention_v_channels=16, num_self_attention_qk_channels=8, num_self_attention_v_channels=16, **encoder,
  )  # fmt: skip
  classifier = ClassificationDecoderConfig(num_classes=7, num_output_query_channels=12, **one_head)
  if kind == 'language':
    backend = _backend('text/mlm')
    decoder = backend.TextDecoderConfig(
      vocab_size=19, max_seq_len=11, num_cross_attention_qk_channels=16, cross_attention_residual=False
    )
    build, parts = backend.MaskedLanguageModel, (text, decoder)
  elif kind == 'text':
    build, parts = _backend('text/classifier').TextClassifier, (text, classifier)
  elif kind == 'fourier':
    backend = _backend('vision/image_classifier')
    image = backend.ImageEncoderConfig(image_shape=(6, 5, 3), num_frequency_bands=4, **one_head, **encoder)
    build, parts = backend.ImageClassifier, (image, classifier)
  else:
    backend = _backend('vision/optical_flow')
    frames = backend.OpticalFlowEncoderConfig(
      image_shape=(6, 5), num_patch_hidden_channels=9, num_frequency_bands=4, **one_head, **encoder
    )
    decoder = backend.OpticalFlowDecoderConfig(image_shape=(6, 5), cross_attention_residual=False, **one_head)
    build, parts = backend.OpticalFlow, (frames, decoder)
  config = PerceiverIOConfig(*parts, num_latents=5, num_latent_channels=16)
  return build(config), config
