"""Committed weights are whole, small, and as good as the run that they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flax import nnx

from perceiver_lib import LayerConfig, PerceiverAR, PerceiverARConfig
from perceiver_lib.adapters import EmbeddingAdapterConfig
from perceiver_lib.data.mirrored_copy import copy_batch
from perceiver_lib.experiments.bands import load_declarations
from perceiver_lib.experiments.files import WEIGHTS, file_hash
from perceiver_lib.files import read_json
from perceiver_lib.modalities.text import VOCAB_SIZE
from perceiver_lib.positions import SinusoidalPositions
from perceiver_lib.training.mirrored_copy import copy_accuracy
from perceiver_lib.training.weights import load_record, load_weights

NOTEBOOKS = Path(__file__).parents[2] / 'notebooks'
FOLDER = NOTEBOOKS / WEIGHTS
INDEX = read_json(FOLDER / 'index.json')


def test_every_file_has_the_hash_and_a_declared_metric_in_the_index():
  kept = {name: entry['sha256'] for name, entry in INDEX.items() if 'sha256' in entry}
  assert {path.name: file_hash(path) for path in FOLDER.glob('*.safetensors')} == kept
  declared = {name[:2]: one.metrics for name, one in load_declarations(NOTEBOOKS / 'bands.json').items()}
  assert all(entry['metric'] in declared[name[:2]] for name, entry in INDEX.items())
  assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6


def test_the_copier_still_copies():
  """The longest rung of 06: 8,176 new bytes as in its run, of which rounding to float16 may change eight."""
  layer = LayerConfig(num_heads=4, widening_factor=4, activation='squared_relu')
  adapter = EmbeddingAdapterConfig(
    num_embeddings=VOCAB_SIZE, num_channels=128, position=SinusoidalPositions(num_channels=128)
  )
  config = PerceiverARConfig(
    input_adapter=adapter, num_latents=128, num_latent_channels=128, num_outputs=VOCAB_SIZE, num_self_attends=1,
    cross_attend=layer, self_attend=layer,
  )  # fmt: skip
  path = FOLDER / '06_copy_1024.safetensors'
  model = load_weights(PerceiverAR(config, rngs=nnx.Rngs(0)), path)
  _, right = copy_accuracy(model, copy_batch(1_024, 16, seed=1_000_003), num_latents=128)
  assert 100 * right.mean() >= INDEX[path.name]['value'] - 0.1
  assert np.isfinite([record['train_loss'] for record in load_record(path)['history']]).all()
