"""Notebook 08's tasks: nothing later is known, what is written is what is scored highest, and a hidden letter costs."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, LearnedPositions
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data import pronunciation as words
from perceiver_lib.decoder import DecoderConfig, IdentityDecoderConfig
from perceiver_lib.lessons import unified_io_ar_tasks as tasks
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import InputLatents, LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.queries import PositionQueries

T, D = 7, 16

DIGITS = np.random.default_rng(0).integers(40, 256, (10, 8, 8, 1)).astype(np.uint8)


@functools.cache
def readers():
  places = LearnedPositions(shape=(words.MAX_LETTERS + T,), num_channels=D)
  table = EmbeddingAdapterConfig(num_embeddings=words.VOCABULARY_SIZE, num_channels=D, position=places)
  asked = PositionQueries(position=LearnedPositions(shape=(T,), num_channels=D))
  unified = UnifiedPerceiverConfig(
    input_adapter=table,
    latents=LearnedLatents(num_latents=2, num_timesteps=T, encoder_window=1),
    num_latent_channels=D,
    num_self_attends_per_block=1,
    self_attend=LayerConfig(num_heads=2),
    decoder=DecoderConfig(queries=asked, num_outputs=words.VOCABULARY_SIZE),
  )
  copier = dataclasses.replace(
    unified,
    latents=InputLatents(num_latents=T),
    decoder=IdentityDecoderConfig(num_outputs=words.VOCABULARY_SIZE, output='tied'),
  )
  config = TransformerConfig(
    input_adapter=table, num_layers=1, num_outputs=words.VOCABULARY_SIZE, self_attend=LayerConfig(num_heads=2)
  )
  transformer = Transformer(config, rngs=nnx.Rngs(0))
  return {
    'unified': (UnifiedPerceiver(unified, rngs=nnx.Rngs(0)), tasks.unified_logits),
    'input latents': (UnifiedPerceiver(copier, rngs=nnx.Rngs(0)), tasks.unified_logits),
    'transformer': (transformer, tasks.transformer_logits),
  }


compiled = functools.cache(jax.jit)


@pytest.mark.parametrize('name', ['unified', 'input latents', 'transformer'])
def test_no_score_knows_later_phonemes_and_all_know_every_letter(name):
  model, logits = readers()[name]
  letters = words.letter_ids(['phone', 'a'])
  known = np.array([[words.START, 40, 41, 42, 43, 44, 45]] * 2, np.int32)
  scores = compiled(logits)
  before = np.asarray(scores(model, letters, known))
  later, letter = known.copy(), letters.copy()
  later[:, 2], letter[:, 0] = 50, words.FIRST_LETTER + 9
  after = np.asarray(scores(model, letters, later))
  assert np.array_equal(before[:, :2], after[:, :2])
  assert np.all(np.any(before[:, 2:] != after[:, 2:], axis=-1))
  assert np.all(np.any(before != np.asarray(scores(model, letter, known)), axis=-1))


@pytest.mark.parametrize('name', ['unified', 'transformer'])
def test_what_is_spoken_greedily_is_the_likeliest_phoneme_at_every_step(name):
  model, logits = readers()[name]
  letters = words.letter_ids(['phone', 'a'])
  speak = tasks.speak if name == 'unified' else functools.partial(tasks.speak_by_transformer, num_timesteps=T)
  said = np.asarray(speak(model, letters, num_beams=1))
  scores = np.asarray(compiled(logits)(model, letters, tasks.shifted(jnp.asarray(said))))
  valid = said != words.PAD
  assert np.array_equal(scores.argmax(-1)[valid], said[valid]) and valid[:, 0].all()


@pytest.mark.parametrize('name', ['unified', 'input latents'])
def test_what_is_written_from_scratch_is_what_is_scored_highest_given_it(name):
  model, logits = readers()[name]
  letters = words.letter_ids(['phone', 'a', 'tea'])
  said = tasks.written(compiled(logits), model, letters, T, batch_size=2)
  assert said.shape == (3, T)
  np.testing.assert_array_equal(tasks.told(compiled(logits), model, letters, said, batch_size=2), said)


def test_hidden_letters_cost_what_they_say():
  model, logits = readers()['unified']
  letters, said = words.letter_ids(['phone'])[0], np.array([40, 41, words.END, 0, 0, 0, 0], np.int32)
  names, phonemes, cost = tasks.aligned(logits, model, 'phone', letters, said)
  assert names == list('phone') and phonemes == [words.PHONEMES[n - words.FIRST_PHONEME] for n in (40, 41)]
  whole, without = (
    jax.nn.softmax(compiled(logits)(model, row[None], tasks.shifted(jnp.asarray(said[None]))))[0, 1, 41]
    for row in (letters, np.where(np.arange(len(letters)) == 3, words.PAD, letters))
  )
  assert cost.shape == (2, 5) and cost[1, 3] == pytest.approx(float(whole - without), abs=1e-5)


def test_the_tone_of_a_frame_names_the_next_cell():
  films = tasks.films(DIGITS, 40, seed=1)
  cells = films['frames'].any(-1).argmax(-1)
  np.testing.assert_array_equal((films['sound'].argmax(-1) + 1 - 3) // 3, cells[:, 1:])
  np.testing.assert_array_equal(films['jumps'], cells[:, 1:] != cells[:, :-1])
  assert (films['frames'].any(-1).sum(-1) == 1).all()
  assert tasks.as_picture(films['frames'][0, 0])[:8, :8].ravel().tolist() == films['frames'][0, 0, 0].tolist()


def test_decibels_are_of_the_frames_asked_for():
  films = tasks.films(DIGITS, 40, seed=1)
  right = films['frames'][:, 1:] / 255
  wrong = np.where(films['jumps'][..., None, None], right, 0.1 + 0.8 * right)
  assert tasks.decibels(wrong, films, jumps=True) == np.inf
  assert tasks.decibels(right + np.where(right > 0.5, -0.1, 0.1), films, jumps=False) == pytest.approx(20, abs=0.01)
