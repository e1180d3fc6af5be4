"""DeepMind's original files: the names of deepmind-research's Haiku modules, which are a pure renaming."""

from __future__ import annotations

from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.perceiver_io import PerceiverIOConfig
from perceiver_lib.pretrained.names import SAME, NameTable, permuted, with_axes
from perceiver_lib.queries import InputQueries

MARKS = {
  'language': 'embedding_decoder/bias',
  'learned': 'image_preprocessor/~/conv2_d/w',
  'convolution': 'image_preprocessor/~/conv2_d_downsample/~/conv/w',
  'flow': 'image_preprocessor/patches_linear/w',
  'multimodal': 'multimodal_preprocessor/label_padding/pos_embs',
  'fourier': 'classification_decoder/~/basic_decoder/output/w',
}

_LAYERS = {
  'norm': 'layer_norm',
  'query_norm': 'layer_norm',
  'input_norm': 'layer_norm_1',
  'attention.query': 'attention/linear',
  'attention.key': 'attention/linear_1',
  'attention.value': 'attention/linear_2',
  'attention.output': 'attention/linear_3',
  'mlp_norm': 'layer_norm_1',
  'mlp.up': 'mlp/linear',
  'mlp.down': 'mlp/linear_1',
}
_IMAGE = 'image_preprocessor/~'
_POSITIONS = f'{_IMAGE}_build_network_inputs'
_TABLE = 'trainable_position_encoding/pos_embs'
_BATCH_NORM = f'{_IMAGE}/conv2_d_downsample/~/batchnorm'
_BATCH_NORM_AXES = with_axes(0, 1, 2)
_PARTS = {
  'input_adapter.embedding': 'embed/embeddings',
  'input_adapter.projection': 'image_preprocessor/patches_linear',
  'input_adapter.position.table': f'{_POSITIONS}/{_TABLE}',
  'input_adapter.position.projection': f'{_POSITIONS}/position_encoding_projector/linear',
  'input_adapter.*.padding': ('multimodal_preprocessor/*_padding/pos_embs', with_axes(0)),
  'input_adapter.*.mask_token': ('multimodal_preprocessor/*_mask_token/pos_embs', with_axes(0)),
  'preprocessor.scale': (f'{_BATCH_NORM}/scale', _BATCH_NORM_AXES),
  'preprocessor.bias': (f'{_BATCH_NORM}/offset', _BATCH_NORM_AXES),
  'preprocessor.mean': (f'{_BATCH_NORM}/~/mean_ema/average', _BATCH_NORM_AXES),
  'preprocessor.variance': (f'{_BATCH_NORM}/~/var_ema/average', _BATCH_NORM_AXES),
  'decoder.queries.*.padding': ('multimodal_decoder/~decoder_query/*_padding/pos_embs', with_axes(0)),
  'decoder.queries.label.adapter.table': f'classification_decoder/~/basic_decoder/~/{_TABLE}',
  'decoder.heads.audio': 'audio_postprocessor/linear',
  'decoder.heads.image': 'projection_postprocessor/linear',
  'decoder.heads.label': 'classification_postprocessor/linear',
}


def table(config: PerceiverIOConfig) -> NameTable:
  """The names of a model's arrays, of parameters and state together."""
  adapter, tied = config.input_adapter, config.decoder.output == 'tied'
  multimodal = isinstance(adapter, ModalityAdaptersConfig)
  encoder = 'encoder/~' if multimodal else 'perceiver_encoder/~'
  decoder = 'classification_decoder/~/basic_decoder'
  if tied:
    decoder = 'basic_decoder'
  elif multimodal:
    decoder = 'multimodal_decoder/~/basic_decoder'
  elif isinstance(config.decoder.queries, InputQueries):
    decoder = 'flow_decoder/~/basic_decoder'
  parts = _PARTS | {
    'latents': f'{encoder}/{_TABLE}',
    'cross_attends.0': f'{encoder}/cross_attention',
    'cross_attends.0.mlp_norm': f'{encoder}/cross_attention/layer_norm_2',
    'decoder.queries.table': f'{decoder}/~/{_TABLE}',
    'decoder.cross_attend': f'{decoder}/cross_attention',
    'decoder.cross_attend.mlp_norm': f'{decoder}/cross_attention/layer_norm_2',
  }
  for index in range(config.num_self_attends_per_block):
    parts[f'blocks.0.layers.{index}'] = f'{encoder}/self_attention{f"_{index}" if index else ""}'
  if isinstance(adapter, EmbeddingAdapterConfig):
    parts['input_adapter.position.table'] = _TABLE
  elif getattr(adapter, 'num_values', None) == 3 and adapter.num_projected_channels:
    parts['input_adapter.projection.kernel'] = (f'{_IMAGE}/conv2_d/w', with_axes(0, 1))
    parts['input_adapter.projection.bias'] = f'{_IMAGE}/conv2_d/b'
  if tied:
    parts['decoder.output.bias'] = 'embedding_decoder/bias'
  else:
    parts['decoder.output'] = f'{decoder}/output'
  if config.preprocessor is not None:
    axes = (0, 1, 2, 3) if config.preprocessor.padding == 'deepmind' else (1, 0, 2, 3)
    parts['preprocessor.kernel'] = (f'{_IMAGE}/conv2_d_downsample/~/conv/w', permuted(*axes))
  leaves = {'kernel': ('w', SAME), 'bias': ('b', SAME), 'scale': ('scale', SAME), 'offset': ('offset', SAME)}
  ignored = ('ema/hidden', 'ema/counter')
  return NameTable(parts=parts, layers=_LAYERS, leaves=leaves, separator='/', ignored=ignored)
