"""Notebook 08's tasks: nothing later is known, what is said is what is scored highest, and a hidden letter costs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.baselines.video import prediction_psnr, video_baselines
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data import film
from perceiver_lib.data import pronunciation as words
from perceiver_lib.data.film import Clips, Film
from perceiver_lib.decoder import DecoderConfig, IdentityDecoderConfig
from perceiver_lib.lessons import unified_io_ar_tasks as tasks
from perceiver_lib.modalities.audio import PATCH_SAMPLES
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.modalities.pixels import pixel_adapter
from perceiver_lib.modalities.text import VOCAB_SIZE
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import PositionQueries
from tests.support import ROUNDING, assert_close

T, D = 7, 16


def small_unified(**settings) -> UnifiedPerceiver:
  sizes = {'num_latent_channels': D, 'num_self_attends_per_block': 1, 'self_attend': LayerConfig(num_heads=2)}
  return UnifiedPerceiver(UnifiedPerceiverConfig(**(sizes | settings)), rngs=nnx.Rngs(0))


@functools.cache
def readers():
  places = LearnedPositions(shape=(words.MAX_LETTERS + T,), num_channels=D)
  table = EmbeddingAdapterConfig(num_embeddings=words.VOCABULARY_SIZE, num_channels=D, position=places)
  asked = PositionQueries(position=LearnedPositions(shape=(T,), num_channels=D))
  unified = small_unified(
    input_adapter=table,
    latents=LearnedLatents(num_latents=2, num_timesteps=T, encoder_window=1),
    decoder=DecoderConfig(queries=asked, num_outputs=words.VOCABULARY_SIZE),
  )
  config = TransformerConfig(
    input_adapter=table, num_layers=1, num_outputs=words.VOCABULARY_SIZE, self_attend=LayerConfig(num_heads=2)
  )
  transformer = Transformer(config, rngs=nnx.Rngs(0))
  return {'unified': (unified, tasks.unified_logits), 'transformer': (transformer, tasks.transformer_logits)}


@pytest.mark.parametrize('name', ['unified', 'transformer'])
def test_no_score_knows_later_phonemes_and_all_know_every_letter(name):
  model, logits = readers()[name]
  letters = words.letter_ids(['phone', 'a'])
  known = np.array([[words.START, 40, 41, 42, 43, 44, 45]] * 2, np.int32)
  scores = jax.jit(logits)
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
  scores = np.asarray(jax.jit(logits)(model, letters, tasks.shifted(jnp.asarray(said))))
  valid = said != words.PAD
  assert np.array_equal(scores.argmax(-1)[valid], said[valid]) and valid[:, 0].all()


def test_hidden_letters_cost_what_they_say():
  model, logits = readers()['unified']
  letters, said = words.letter_ids(['phone'])[0], np.array([40, 41, words.END, 0, 0, 0, 0], np.int32)
  names, phonemes, cost = tasks.aligned(logits, model, 'phone', letters, said)
  assert names == list('phone') and phonemes == [words.PHONEMES[n - words.FIRST_PHONEME] for n in (40, 41)]
  whole, without = (
    jax.nn.softmax(jax.jit(logits)(model, row[None], tasks.shifted(jnp.asarray(said[None]))))[0, 1, 41]
    for row in (letters, np.where(np.arange(len(letters)) == 3, words.PAD, letters))
  )
  assert cost.shape == (2, 5) and cost[1, 3] == pytest.approx(float(whole - without), abs=1e-5)


def namer() -> UnifiedPerceiver:
  pixels = pixel_adapter((28, 28, 1), patch_size=2, num_bands=7)
  letters = EmbeddingAdapterConfig(num_embeddings=VOCAB_SIZE, num_channels=24)
  model = small_unified(
    input_adapter=ModalityAdaptersConfig(
      modalities=(('letters', letters), ('pixels', pixels)), num_channels=pixels.num_channels + 4
    ),
    latents=LearnedLatents(num_latents=2, num_timesteps=tasks.NUM_LETTERS, encoder_window=1),
    decoder=IdentityDecoderConfig(num_outputs=VOCAB_SIZE),
  )
  random = np.random.default_rng(0)
  state = jax.tree.map(
    lambda leaf: leaf + random.normal(scale=0.2, size=leaf.shape).astype(np.float32), nnx.state(model)
  )
  nnx.update(model, state)
  return model


def test_names_are_bytes_and_a_namer_spells_what_it_scores_highest():
  assert tasks.name_ids(np.array([7])).tolist() == [[121, 107, 124, 107, 116, 2]]
  model = namer()
  images = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
  place, same = np.random.default_rng(2).permutation(196), np.arange(196)
  ids = np.asarray(tasks.name_letters(model, images, same, same))
  scores = [
    np.asarray(
      jax.jit(tasks.next_letter_logits)(model, tasks.image_tokens(jnp.asarray(images), **moved), jnp.asarray(ids))
    )
    for moved in ({}, {'order': jnp.asarray(place)}, {'place': jnp.asarray(place)})
  ]
  assert np.array_equal(scores[0].argmax(-1), ids)
  assert_close(scores[1], scores[0], 10 * ROUNDING)
  assert np.abs(scores[2] - scores[0]).max() > 1e-3
  back = tasks.torn(tasks.torn(images, place), np.argsort(place))
  assert np.array_equal(back, images)


def moving_clips(count: int = 3) -> Clips:
  random, num_frames = np.random.default_rng(0), 4
  frames = random.integers(0, 256, (count * num_frames, 8, 8, 3), dtype=np.uint8)
  samples = random.normal(size=film.sample_index(len(frames)) + 16).astype(np.float32)
  cuts = np.zeros(len(frames), bool)
  cuts[3] = True
  return Clips(Film(frames=frames, samples=samples, cuts=cuts), np.arange(count) * num_frames, num_frames)


def predictor() -> UnifiedPerceiver:
  where = FourierFeatures(num_bands=6, max_resolution=(3, 4, 4))
  when = FourierFeatures(num_bands=16, max_resolution=(250,))
  picture = FeatureAdapterConfig(num_values=12, scale=tasks.BYTE, shift=-1.0, position=where)
  sound = FeatureAdapterConfig(num_values=PATCH_SAMPLES, scale=2.0, position=when)
  asked = FeatureAdapterConfig(num_values=24, position=where)
  return small_unified(
    input_adapter=ModalityAdaptersConfig(
      modalities=(('audio', sound), ('video', picture)), num_channels=picture.num_channels + 5
    ),
    latents=LearnedLatents(num_latents=2, num_timesteps=3, encoder_window=1),
    decoder=DecoderConfig(queries=asked, num_outputs=12, output='zeros'),
  )


def test_an_untrained_predictor_copies_the_last_frame_and_knows_no_later_one():
  clips, model = moving_clips(), predictor()
  ours = prediction_psnr(clips, tasks.predict_clips(model, clips, 2))
  assert tuple(ours) == pytest.approx(tuple(video_baselines(clips)['copy last frame']), rel=1e-6)
  kernel = model.decoder.output.kernel
  kernel[...] = jax.random.normal(jax.random.key(0), kernel[...].shape)
  predict = jax.jit(lambda frames, samples: tasks.predicted_frames(model, frames, samples, 2))
  clip = clips[0]
  frames, samples = clip['frames'][None, :-1], clip['samples'][None]
  later, louder = frames.copy(), samples.copy()
  later[:, 2], louder[:, -16 * 150 :] = 0, 1.0
  before, after, heard = (np.asarray(predict(f, s)) for f, s in ((frames, samples), (later, samples), (frames, louder)))
  assert np.array_equal(before[:, :2], after[:, :2]) and not np.array_equal(before[:, 2], after[:, 2])
  assert np.array_equal(before[:, 0], heard[:, 0])
  assert tasks.lively_clip(clips).starts[0] in (4, 8)
