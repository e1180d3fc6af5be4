"""Hugging Face's transformers: its names, and its `config.json` as a config and back.

Source: `models/perceiver/modeling_perceiver.py` of transformers 5.24. All sizes that it writes as numbers stand in
`PerceiverIOConfig`'s presets too; what is left for `config.json` to say is read and written here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from perceiver_lib.adapters import EmbeddingAdapterConfig, LearnedPositions
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.perceiver_io import PerceiverIOConfig
from perceiver_lib.pretrained.names import SAME, TRANSPOSED, Layout, NameTable, permuted, with_axes
from perceiver_lib.queries import InputQueries, LearnedQueries
from perceiver_lib.training.checkpoints import CheckpointError

MARKS = {
  'language': 'embedding_decoder.bias',
  'learned': 'perceiver.input_preprocessor.convnet_1x1.weight',
  'convolution': 'perceiver.input_preprocessor.convnet.conv.weight',
  'flow': 'perceiver.input_preprocessor.conv_after_patches.weight',
  'multimodal': 'perceiver.input_preprocessor.padding.label',
  'text': 'perceiver.input_preprocessor.embeddings.weight',
  'fourier': 'perceiver.decoder.decoder.final_layer.weight',
}
"""Kinds, each with a name that none above it has."""

ARCHITECTURES = {
  'language': 'PerceiverForMaskedLM',
  'learned': 'PerceiverForImageClassificationLearned',
  'convolution': 'PerceiverForImageClassificationConvProcessing',
  'flow': 'PerceiverForOpticalFlow',
  'multimodal': 'PerceiverForMultimodalAutoencoding',
  'text': 'PerceiverForSequenceClassification',
  'fourier': 'PerceiverForImageClassificationFourier',
}

_LAYERS = {
  'norm': 'attention.self.layernorm1',
  'query_norm': 'attention.self.layernorm1',
  'input_norm': 'attention.self.layernorm2',
  'attention.query': 'attention.self.query',
  'attention.key': 'attention.self.key',
  'attention.value': 'attention.self.value',
  'attention.output': 'attention.output.dense',
  'mlp_norm': 'layernorm',
  'mlp.up': 'mlp.dense1',
  'mlp.down': 'mlp.dense2',
}
_INPUT, _DECODER = 'perceiver.input_preprocessor', 'perceiver.decoder.decoder'
_BATCH_NORM = f'{_INPUT}.convnet.batchnorm'
_PARTS = {
  'latents': 'perceiver.embeddings.latents',
  'cross_attends.0': 'perceiver.encoder.cross_attention',
  'blocks.0.layers.*': 'perceiver.encoder.self_attends.*',
  'input_adapter.embedding': f'{_INPUT}.embeddings.weight',
  'input_adapter.projection': f'{_INPUT}.conv_after_patches',
  'input_adapter.position.table': f'{_INPUT}.position_embeddings.position_embeddings',
  'input_adapter.position.projection': f'{_INPUT}.positions_projection',
  'input_adapter.*.padding': (f'{_INPUT}.padding.*', with_axes(0)),
  'input_adapter.*.mask_token': (f'{_INPUT}.mask.*', with_axes(0)),
  'preprocessor.scale': f'{_BATCH_NORM}.weight',
  'preprocessor.bias': f'{_BATCH_NORM}.bias',
  'preprocessor.mean': f'{_BATCH_NORM}.running_mean',
  'preprocessor.variance': f'{_BATCH_NORM}.running_var',
  'decoder.queries.table': f'{_DECODER}.output_position_encodings.position_embeddings',
  'decoder.queries.*.adapter.table': (
    'perceiver.decoder.modalities.*.decoder.output_position_encodings.position_embeddings'
  ),
  'decoder.queries.*.padding': ('perceiver.decoder.padding.*', with_axes(0)),
  'decoder.cross_attend': f'{_DECODER}.decoding_cross_attention',
  'decoder.output': f'{_DECODER}.final_layer',
  'decoder.heads.*': 'perceiver.output_postprocessor.modalities.*.classifier',
}
_TEXT = {'input_adapter.position.table': f'{_INPUT}.position_embeddings.weight'}
_LANGUAGE = {
  'decoder.queries.table': 'perceiver.decoder.output_position_encodings.position_embeddings',
  'decoder.cross_attend': 'perceiver.decoder.decoding_cross_attention',
  'decoder.output.bias': 'embedding_decoder.bias',
}
_LEARNED = {
  'input_adapter.projection.kernel': (
    f'{_INPUT}.convnet_1x1.weight',
    Layout(lambda array: array[:, :, 0, 0].T, lambda array: array.T[:, :, None, None]),
  ),
  'input_adapter.projection.bias': f'{_INPUT}.convnet_1x1.bias',
}
COUNTED = f'{_BATCH_NORM}.num_batches_tracked'


def table(config: PerceiverIOConfig) -> NameTable:
  """The names of a model's arrays."""
  adapter, parts = config.input_adapter, dict(_PARTS)
  if isinstance(adapter, EmbeddingAdapterConfig):
    parts |= _TEXT
  elif isinstance(getattr(adapter, 'position', None), LearnedPositions):
    parts |= _LEARNED
  if config.decoder.output == 'tied':
    parts |= _LANGUAGE
  if config.preprocessor is not None:
    # The converter behind the released file transposed height and width of deepmind-research's kernel.
    transposed = config.preprocessor.padding == 'deepmind'
    axes = (3, 2, 1, 0) if transposed else (2, 3, 1, 0)
    parts['preprocessor.kernel'] = (f'{_INPUT}.convnet.conv.weight', permuted(*axes))
  linear, same = ('weight', TRANSPOSED), ('bias', SAME)
  leaves = {'kernel': linear, 'bias': same, 'scale': ('weight', SAME), 'offset': same}
  return NameTable(parts=parts, layers=_LAYERS, leaves=leaves, ignored=(COUNTED,))


def released_config(kind: str) -> PerceiverIOConfig:
  """The sizes of the file that DeepMind released of this kind.

  Raises:
    CheckpointError: for text classifiers, of which it released none.
  """
  presets = {
    'language': PerceiverIOConfig.paper_language,
    'flow': PerceiverIOConfig.paper_flow,
    'multimodal': PerceiverIOConfig.paper_multimodal,
  }
  if kind == 'text':
    raise CheckpointError('A text classifier has no published sizes: put its config.json beside it, or pass `config`.')
  return presets[kind]() if kind in presets else PerceiverIOConfig.paper_imagenet(kind)


def kind_of_names(names: Collection[str], marks: Mapping[str, str]) -> str | None:
  """The kind whose mark is among the names, None = no kind."""
  return next((kind for kind, mark in marks.items() if mark in names), None)


def config_of(settings: Mapping[str, Any]) -> PerceiverIOConfig:
  """The config that a `config.json` describes, in the mode of Hugging Face's own program.

  Raises:
    CheckpointError: for a model or an activation that is not known here.
  """
  kinds = {architecture: kind for kind, architecture in ARCHITECTURES.items()}
  architecture = (settings.get('architectures') or ['none'])[0]
  if architecture not in kinds:
    raise CheckpointError(f'config.json must name one of {", ".join(kinds)}; got {architecture}.')
  kind, get = kinds[architecture], {**_DEFAULTS, **settings}.get
  for name in ('hidden_act', 'cross_attention_shape_for_attention'):
    if get(name) != _DEFAULTS[name]:
      raise CheckpointError(f'config.json must have {name} {_DEFAULTS[name]}, as all released models; got {get(name)}.')
  d = get('d_latents')
  num_outputs = get('num_labels') or len(get('id2label') or (0, 1))
  widths = {'qk_channels': get('qk_channels'), 'v_channels': get('v_channels')}
  cross_attend = LayerConfig(
    num_heads=get('num_cross_attention_heads'),
    widening_factor=get('cross_attention_widening_factor'),
    query_residual=get('use_query_residual'),
    **widths,
  )
  self_attend = LayerConfig(
    num_heads=get('num_self_attention_heads'), widening_factor=get('self_attention_widening_factor'), **widths
  )
  template = PerceiverIOConfig.paper_language() if kind == 'text' else released_config(kind)
  adapter, decoder, preprocessor = template.input_adapter, template.decoder, template.preprocessor
  if kind in ('language', 'text'):
    length = get('max_position_embeddings')
    position = LearnedPositions(shape=(length,), num_channels=get('d_model'))
    adapter = EmbeddingAdapterConfig(num_embeddings=get('vocab_size'), num_channels=get('d_model'), position=position)
    queries = LearnedQueries(num_queries=length, num_channels=get('d_model'))
    layer = dataclasses.replace(decoder.cross_attend, v_channels=get('d_model'))
    decoder = dataclasses.replace(decoder, queries=queries, num_outputs=get('vocab_size'), cross_attend=layer)
  if kind == 'learned':
    position = dataclasses.replace(adapter.position, shape=(get('image_size'), get('image_size')))
    adapter = dataclasses.replace(adapter, position=position)
  if kind == 'convolution':
    preprocessor = dataclasses.replace(preprocessor, image_shape=(get(_CONVOLVED), get(_CONVOLVED), 3))
  if kind in ('learned', 'convolution', 'fourier', 'text'):
    queries = LearnedQueries(num_queries=1, num_channels=d)
    layer = LayerConfig(num_heads=1, query_residual=True)
    decoder = DecoderConfig(queries=queries, num_outputs=num_outputs, cross_attend=layer)
  if kind == 'flow':
    position = dataclasses.replace(adapter.position, max_resolution=tuple(get('train_size')))
    adapter = dataclasses.replace(adapter, position=position)
  if kind == 'multimodal':
    size = get('image_size')
    template = PerceiverIOConfig.multimodal(
      num_latents=1, num_latent_channels=1, num_self_attends=1, num_heads=1,
      video_cells=(get('num_frames'), size, size), num_samples=get('num_frames') * get('audio_samples_per_frame'),
      samples_per_patch=get('samples_per_patch'), num_labels=num_outputs,
      num_label_channels=get('_label_trainable_num_channels'), num_outputs=get('output_num_channels'),
    )  # fmt: skip
    adapter, decoder = template.input_adapter, template.decoder
  return PerceiverIOConfig(
    input_adapter=adapter,
    num_latents=get('num_latents'),
    num_latent_channels=d,
    num_blocks=get('num_blocks'),
    num_self_attends_per_block=get('num_self_attends_per_block'),
    cross_attend=cross_attend,
    self_attend=self_attend,
    decoder=decoder,
    preprocessor=preprocessor,
  ).in_mode('hugging_face')


# transformers convolves images of any size and its `image_size` says nothing: the released file has 56 for 224 pixels.
_CONVOLVED = 'convolution_image_size'
_DEFAULTS = {
  'num_latents': 256, 'd_latents': 1280, 'd_model': 768, 'num_blocks': 1, 'num_self_attends_per_block': 26,
  'num_self_attention_heads': 8, 'num_cross_attention_heads': 8, 'qk_channels': None, 'v_channels': None,
  'hidden_act': 'gelu', 'cross_attention_shape_for_attention': 'kv', 'self_attention_widening_factor': 1,
  'cross_attention_widening_factor': 1, 'use_query_residual': True, 'vocab_size': 262, 'max_position_embeddings': 2048,
  'image_size': 56, 'train_size': (368, 496), 'num_frames': 16, 'audio_samples_per_frame': 1920,
  'samples_per_patch': 16, 'output_num_channels': 512, '_label_trainable_num_channels': 1024, _CONVOLVED: 224,
}  # fmt: skip
"""Of `PerceiverConfig`: a `config.json` leaves out what it did not change."""


def settings_of(config: PerceiverIOConfig, names: Collection[str]) -> dict[str, Any]:
  """The `config.json` with which transformers builds a model of this config.

  Raises:
    ValueError: if it can build none.
  """
  adapter, decoder, cross, layer = config.input_adapter, config.decoder, config.cross_attend, config.self_attend
  kind = kind_of_names(names, MARKS)
  settings = {
    'architectures': [ARCHITECTURES[kind]],
    'model_type': 'perceiver',
    'num_latents': config.num_latents,
    'd_latents': config.num_latent_channels,
    'd_model': adapter.num_channels,
    'num_blocks': config.num_blocks,
    'num_self_attends_per_block': config.num_self_attends_per_block,
    'num_self_attention_heads': layer.num_heads,
    'num_cross_attention_heads': cross.num_heads,
    'qk_channels': cross.qk_channels,
    'v_channels': cross.v_channels,
    'self_attention_widening_factor': layer.widening_factor,
    'cross_attention_widening_factor': cross.widening_factor,
    'use_query_residual': cross.query_residual,
  }
  num_outputs = decoder.num_outputs
  if isinstance(adapter, EmbeddingAdapterConfig):
    settings |= {'vocab_size': adapter.num_embeddings, 'max_position_embeddings': adapter.position.shape[0]}
  elif kind == 'learned':
    settings['image_size'] = adapter.position.shape[0]
  elif kind == 'convolution':
    settings[_CONVOLVED] = config.preprocessor.image_shape[0]
  elif isinstance(decoder.queries, InputQueries):
    settings['train_size'] = list(adapter.position.max_resolution)
  elif isinstance(adapter, ModalityAdaptersConfig):
    inputs, queries = dict(adapter.modalities), dict(decoder.queries.modalities)
    frames, size, _ = inputs['image'].position.max_resolution
    num_outputs = dict(decoder.heads)['label']
    settings |= {
      'num_frames': frames,
      'image_size': size,
      'audio_samples_per_frame': inputs['audio'].position.max_resolution[0] // frames,
      'samples_per_patch': inputs['audio'].num_values,
      'output_num_channels': decoder.num_outputs,
      '_label_trainable_num_channels': queries['label'].num_channels,
    }
  if kind in ('learned', 'convolution', 'fourier', 'text', 'multimodal'):
    settings |= {'id2label': {str(label): f'LABEL_{label}' for label in range(num_outputs)}}
  if config_of(settings) != config.in_mode('hugging_face'):
    raise ValueError('Hugging Face has no model of this config; keep it with training.weights.save_weights.')
  return settings
