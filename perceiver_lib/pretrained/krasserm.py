"""krasserm/perceiver-io: its names, and the `model_config` of its `config.json` as a config.

Source: `perceiver/model/core/modules.py` and the backends beside it, version 0.11. It has the only public weights of a
Perceiver AR, on text and on piano music, and its Perceiver IO models are DeepMind's under other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.models.perceiver_ar import PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIOConfig
from perceiver_lib.positions import FourierFeatures, Rotary
from perceiver_lib.pretrained.names import SAME, TRANSPOSED, NameTable
from perceiver_lib.queries import InputQueries, LearnedQueries
from perceiver_lib.training.checkpoints import CheckpointError

_LAYERS = {
  'norm': '0.module.norm',
  'query_norm': '0.module.q_norm',
  'input_norm': '0.module.kv_norm',
  'attention.query': '0.module.attention.q_proj',
  'attention.key': '0.module.attention.k_proj',
  'attention.value': '0.module.attention.v_proj',
  'attention.output': '0.module.attention.o_proj',
  'mlp_norm': '1.module.0',
  'mlp.up': '1.module.1',
  'mlp.down': '1.module.3',
}
_LEAVES = {
  'kernel': ('weight', TRANSPOSED),
  'bias': ('bias', SAME),
  'scale': ('weight', SAME),
  'offset': ('bias', SAME),
}
_AR = {
  'input_adapter.embedding': 'backend_model.input_adapter.txt_embedding.weight',
  'input_adapter.position.table': 'backend_model.input_adapter.pos_embedding.weight',
  'cross_attends.0': 'backend_model.cross_attention',
  'blocks.0.layers.*': 'backend_model.self_attention.*',
  'output_norm': 'backend_model.out_norm',
  'head': 'backend_model.output_adapter',
}
_ENCODER, _DECODER = 'backend_model.0', 'backend_model.1'
_IO = {
  'latents': f'{_ENCODER}.latent_provider._query',
  'cross_attends.0': f'{_ENCODER}.cross_attn_1',
  'blocks.0.layers.*': f'{_ENCODER}.self_attn_1.*',
  'input_adapter.embedding': f'{_ENCODER}.input_adapter.txt_embedding.weight',
  'input_adapter.position.table': f'{_ENCODER}.input_adapter.pos_embedding.weight',
  'input_adapter.projection': f'{_ENCODER}.input_adapter.linear',
  'decoder.queries.table': f'{_DECODER}.output_query_provider._query',
  'decoder.cross_attend': f'{_DECODER}.cross_attn',
  'decoder.output': f'{_DECODER}.output_adapter.linear',
}


def table(config: PerceiverARConfig | PerceiverIOConfig) -> NameTable:
  """The names of a model's arrays."""
  if isinstance(config, PerceiverARConfig):
    return NameTable(parts=_AR, layers=_LAYERS, leaves=_LEAVES, ignored=('frq_pos_encoding.inv_freq',))
  parts = dict(_IO)
  if config.decoder.output == 'tied':
    parts['decoder.output.bias'] = f'{_DECODER}.output_adapter.bias'
  if not config.decoder.cross_attend.query_residual:
    # What a residual wraps is called `module`.
    for ours, theirs in _LAYERS.items():
      if theirs.startswith('0.'):
        parts[f'decoder.cross_attend.{ours}'] = f'{_DECODER}.cross_attn.{theirs.replace("module.", "")}'
  ignored = ('position_encoding.position_encoding',)
  return NameTable(parts=parts, layers=_LAYERS, leaves=_LEAVES, ignored=ignored)


def config_of(settings: Mapping[str, Any]) -> PerceiverARConfig | PerceiverIOConfig:
  """The config of the `model_config` of a `config.json`; Perceiver IO in Hugging Face's mode, as there.

  Raises:
    CheckpointError: for a Perceiver IO that reads its input more than once, or shares its blocks in another way.
  """
  return _io(settings) if 'encoder' in settings else _ar(settings)


def _ar(settings: Mapping[str, Any]) -> PerceiverARConfig:
  width, absolute = settings['num_channels'], settings['abs_pos_emb']
  length = settings['max_seq_len']
  num_rotary_layers = settings['num_self_attention_rotary_layers']
  cross_attend, self_attend = (
    LayerConfig(
      num_heads=settings['num_heads'],
      widening_factor=settings[f'{kind}_attention_widening_factor'],
      activation='gelu_erf',
      dropout=settings['residual_dropout'],
      rotary=Rotary(fraction=0.5 if absolute else 1.0),
      biases=biases,
    )
    for kind, biases in (('cross', 'output'), ('self', 'none'))
  )
  position = LearnedPositions(shape=(length,), num_channels=width) if absolute else None
  return PerceiverARConfig(
    input_adapter=EmbeddingAdapterConfig(num_embeddings=settings['vocab_size'], num_channels=width, position=position),
    num_latents=settings['max_latents'],
    num_latent_channels=width,
    num_outputs=settings['vocab_size'],
    num_self_attends=settings['num_self_attention_layers'],
    latent_projection='none',
    key_norm='query_norm',
    num_rotary_layers=None if num_rotary_layers == -1 else num_rotary_layers,
    output_norm=settings['output_norm'],
    output='tied' if settings['output_bias'] else 'tied_without_bias',
    cross_attend=cross_attend,
    self_attend=self_attend,
  )


def _io(settings: Mapping[str, Any]) -> PerceiverIOConfig:
  encoder, decoder = settings['encoder'], settings['decoder']
  blocks, reads = encoder['num_self_attention_blocks'], encoder['num_cross_attention_layers']
  if reads != 1 or (blocks > 1 and not encoder['first_self_attention_block_shared']):
    raise CheckpointError(
      f'Perceiver IO reads its input once and applies one block; this model has {reads} reads and {blocks} blocks of '
      'which the first is not shared.'
    )
  d = settings['num_latent_channels']
  if 'vocab_size' in encoder:
    width = encoder['num_input_channels']
    position = LearnedPositions(shape=(encoder['max_seq_len'],), num_channels=width)
    adapter = EmbeddingAdapterConfig(num_embeddings=encoder['vocab_size'], num_channels=width, position=position)
    read_width = d
  else:
    *shape, num_values = encoder['image_shape']
    if patch_channels := encoder.get('num_patch_input_channels'):
      shape, num_values = encoder['image_shape'], 2 * patch_channels
    adapter = FeatureAdapterConfig(
      num_values=num_values,
      num_projected_channels=encoder.get('num_patch_hidden_channels'),
      position=FourierFeatures(num_bands=encoder['num_frequency_bands'], max_resolution=tuple(shape)),
    )
    read_width = adapter.num_channels
  if 'num_classes' in decoder:
    queries = LearnedQueries(
      num_queries=decoder.get('num_output_queries', 1), num_channels=decoder['num_output_query_channels']
    )
    query_width, output, num_outputs = queries.num_channels, 'linear', decoder['num_classes']
  elif 'vocab_size' in decoder:
    query_width = decoder['num_output_query_channels'] or adapter.num_channels
    queries = LearnedQueries(num_queries=decoder['max_seq_len'], num_channels=query_width)
    output = 'linear' if decoder['num_output_query_channels'] else 'tied'
    num_outputs = decoder['vocab_size']
  else:
    queries, query_width, output, num_outputs = InputQueries(), adapter.num_channels, 'zeros', 2

  def layer(part: Mapping[str, Any], kind: str, width: int, num_input_channels: int, **more: Any) -> LayerConfig:
    qk, v = part[f'num_{kind}_attention_qk_channels'] or width, part[f'num_{kind}_attention_v_channels']
    return LayerConfig(
      num_heads=part[f'num_{kind}_attention_heads'],
      qk_channels=None if qk == num_input_channels else qk,
      v_channels=None if v == qk else v,
      widening_factor=part[f'{kind}_attention_widening_factor'],
      **more,
    )

  residual = {'query_residual': decoder['cross_attention_residual']}
  return PerceiverIOConfig(
    input_adapter=adapter,
    num_latents=settings['num_latents'],
    num_latent_channels=d,
    num_blocks=blocks,
    num_self_attends_per_block=encoder['num_self_attention_layers_per_block'],
    cross_attend=layer(encoder, 'cross', read_width, adapter.num_channels),
    self_attend=layer(encoder, 'self', d, d),
    decoder=DecoderConfig(
      queries=queries,
      num_outputs=num_outputs,
      output=output,
      cross_attend=layer(decoder, 'cross', query_width, d, **residual),
    ),
  ).in_mode('hugging_face')
