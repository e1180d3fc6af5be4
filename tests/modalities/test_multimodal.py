from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig, PaddedAdapter, autoencoding_inputs
from perceiver_lib.models.perceiver_io import PerceiverIOConfig


def test_a_label_is_masked_where_it_is_hidden_and_known_elsewhere():
  sizes = {'num_latents': 1, 'num_latent_channels': 8, 'num_self_attends': 1, 'num_heads': 1, 'num_labels': 5}
  frames, samples = np.zeros((3, 2, 8, 8, 3), np.float32), np.zeros((3, 32), np.float32)
  label = autoencoding_inputs(frames, samples, labels=np.array([3, -1, 0]), num_labels=5)['label']
  hidden = autoencoding_inputs(frames, samples, num_labels=5)['label']
  for known in (True, False):
    config = PerceiverIOConfig.multimodal(**sizes, known_labels=known).input_adapter
    adapter = PaddedAdapter(config, 'label', rngs=nnx.Rngs(0))
    channels, mask = np.asarray(adapter(label)), np.asarray(adapter.mask_token[...])
    masked = (channels == mask).all(axis=(1, 2)).tolist()
    assert masked == ([False, True, False] if known else [True] * 3)
    assert np.array_equal(adapter(hidden), np.broadcast_to(mask, channels.shape))
    assert not known or channels[0, 0, :5].tolist() == [0, 0, 0, 1, 0]
    assert not PaddedAdapter(config, 'audio', rngs=nnx.Rngs(0)).masked_where_zero  # silence is no hidden sound


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'masked_where_zero': ('label',)}, 'needs mask tokens'),
    ({'masked': (), 'masked_where_zero': ('sound',)}, 'masked_where_zero must name modalities, label'),
  ],
)
def test_what_cannot_be_masked_is_refused(fields, words):
  adapter = FeatureAdapterConfig(num_values=5)
  with pytest.raises(ValueError, match=words):
    ModalityAdaptersConfig(modalities=(('label', adapter),), num_channels=7, **fields)
