"""What notebook 03 measures, on known cases; and that its model learns at all."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from perceiver_lib.data.optical_flow import load_optical_flow
from perceiver_lib.lessons import perceiver_io_optical_flow as lesson
from perceiver_lib.modalities.optical_flow import ReadFlow
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.scores.flow import end_point_error
from perceiver_lib.training.fit import fit
from perceiver_lib.training.optimizers import adamw_warmup_cosine

CONFIG = PerceiverIOConfig.optical_flow(
  image_shape=(16, 16), num_latents=16, num_latent_channels=64, num_self_attends=1, num_heads=4, num_cross_heads=4,
  qk_channels=64, num_bands=4,
)  # fmt: skip


@pytest.fixture(scope='module')
def few():
  return dataclasses.replace(load_optical_flow(size=16, max_severity=0.5, held_out_pairs=8).train, length=4)


def test_a_short_training_fits_a_few_pairs(few):
  read, pairs = ReadFlow(), jax.device_get(few.batch(0, 4))

  def loss(model, batch, rngs):
    truth = rearrange(batch['flow'], 'b h w e -> b (h w) e')
    rows = jax.random.permutation(rngs.dropout(), truth.shape[1])[:64]
    return end_point_error(read.at(model, batch['frames'], rows), truth[:, rows]).mean(), {}

  result = fit(
    PerceiverIO(CONFIG, rngs=nnx.Rngs(0)),
    loss,
    lambda step: few.batches(4, start_step=step),
    optimizer=adamw_warmup_cosine(2e-3, 150, warmup_steps=18),
    num_steps=150,
    seed=0,
    ema_decay=0.99,
    progress='silent',
  )
  error = end_point_error(lesson.flow_of(read, result.model, pairs['frames']), pairs['flow']).mean()
  assert float(error) < 0.8 * np.linalg.norm(pairs['flow'], axis=-1).mean()


def test_verdicts_have_the_right_side():
  said = lesson.standing(1.5, {'no motion': 3.0, 'TV-L1': 1.1, 'Lucas-Kanade': 1.4, 'one constant': 1.5})
  assert said == (
    'Perceiver IO has 1.50 px. It is ahead of no motion (3.00) and behind '
    'one constant (1.50), Lucas-Kanade (1.40), TV-L1 (1.10).'
  )
