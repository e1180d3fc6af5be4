"""Notebook 08's canvas and film: what is said is what stands there, and the tone names the next cell."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.lessons import unified_io_ar_streams as streams
from perceiver_lib.lessons import unified_io_ar_tasks as tasks
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.modalities.pixels import pixel_adapter
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.queries import PositionQueries

RANDOM = np.random.default_rng(0)
DIGITS = {
  'image': np.where(RANDOM.random((10, 8, 8, 1)) < 0.5, 255, 40).astype(np.uint8),
  'label': np.arange(10),
}
CANVASES = streams.canvases(DIGITS, 5, side=26, shrink=2, seed=3)
T = streams.CANVAS_TIMESTEPS


def test_a_canvas_holds_the_three_digits_that_are_said():
  assert CANVASES['canvas'].shape == (5, 26, 26) and CANVASES['target'].shape == (5, T)
  for label, target in zip(CANVASES['label'], CANVASES['target'], strict=True):
    assert streams.spell_numbers(target) == ' '.join(streams.NUMBERS[number] for number in label)
  named = streams.cut_out_and_compare(DIGITS, CANVASES['canvas'], 2)
  np.testing.assert_array_equal(named, CANVASES['label'])
  again = streams.canvases(DIGITS, 5, side=26, shrink=2, seed=3, step=1)
  assert not np.array_equal(again['canvas'], CANVASES['canvas'])


def decoder(num_timesteps, num_outputs):
  asked = PositionQueries(position=LearnedPositions(shape=(num_timesteps,), num_channels=8))
  return DecoderConfig(queries=asked, num_outputs=num_outputs)


def test_what_is_said_of_a_canvas_is_the_likeliest_letter_at_every_step():
  pixels = pixel_adapter((26, 26, 1), num_bands=2)
  letters = EmbeddingAdapterConfig(num_embeddings=streams.NUM_LETTERS, num_channels=8)
  both = ModalityAdaptersConfig(modalities=(('canvas', pixels), ('said', letters)), num_channels=16)
  config = UnifiedPerceiverConfig(
    input_adapter=both,
    latents=LearnedLatents(num_latents=1, num_timesteps=T, encoder_window=1),
    num_latent_channels=16,
    num_self_attends_per_block=1,
    self_attend=LayerConfig(num_heads=2),
    decoder=decoder(T, streams.NUM_LETTERS),
  )
  places = LearnedPositions(shape=(4 + T,), num_channels=8)
  patches = FeatureAdapterConfig(num_values=169, scale=1 / 255, num_projected_channels=8, position=places)
  rival = TransformerConfig(
    input_adapter=patches, num_layers=1, num_outputs=streams.NUM_LETTERS, self_attend=LayerConfig(num_heads=2)
  )
  model, transformer = UnifiedPerceiver(config, rngs=nnx.Rngs(0)), Transformer(rival, rngs=nnx.Rngs(0))
  canvas = CANVASES['canvas'][:2]
  as_bytes = functools.partial(streams.letters_as_bytes, width=169)
  for said, logits, one in (
    (tasks.speak(model, streams.canvas_source(canvas), newest_tokens=streams.newest_letter),
     streams.canvas_logits, model),
    (tasks.speak_by_transformer(transformer, streams.patch_tokens(canvas, 13), num_timesteps=T, newest_tokens=as_bytes),
     functools.partial(streams.patch_logits, patch=13), transformer),
  ):  # fmt: skip
    scores = np.asarray(jax.jit(logits)(one, canvas, tasks.shifted(said)))
    valid = np.asarray(said) != 0
    assert np.array_equal(scores.argmax(-1)[valid], np.asarray(said)[valid]) and valid[:, 0].all()


def test_the_tone_of_a_frame_names_the_next_cell():
  films = streams.films(DIGITS['image'], 40, seed=1)
  cells = films['frames'].any(-1).argmax(-1)
  np.testing.assert_array_equal((films['sound'].argmax(-1) + 1 - 3) // 3, cells[:, 1:])
  np.testing.assert_array_equal(films['jumps'], cells[:, 1:] != cells[:, :-1])
  assert (films['frames'].any(-1).sum(-1) == 1).all()
  assert streams.as_picture(films['frames'][0, 0])[:8, :8].ravel().tolist() == films['frames'][0, 0, 0].tolist()


def test_decibels_are_of_the_frames_asked_for():
  films = streams.films(DIGITS['image'], 40, seed=1)
  right = films['frames'][:, 1:] / 255
  wrong = np.where(films['jumps'][..., None, None], right, 0.1 + 0.8 * right)
  assert streams.decibels(wrong, films, jumps=True) == np.inf
  assert streams.decibels(right + np.where(right > 0.5, -0.1, 0.1), films, jumps=False) == pytest.approx(20, abs=0.01)
