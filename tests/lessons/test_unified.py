"""Notebook 08's recipes: what they feed the model, that they learn, and that their baselines are what they say."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.baselines.video import video_baselines
from perceiver_lib.data import film
from perceiver_lib.data import pronunciation as words
from perceiver_lib.data.film import Clips, Film
from perceiver_lib.lessons import unified_bytes, unified_digits, unified_film
from perceiver_lib.lessons import unified_pronunciation as speech
from perceiver_lib.lessons import unified_rule as rule
from perceiver_lib.models.transformer import Transformer
from perceiver_lib.models.unified import UnifiedPerceiver
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.scores import causality
from tests.support import ROUNDING, assert_close

RECIPE = dataclasses.replace(speech.RECIPES['smoke'], num_timesteps=7)


def word_source(count: int) -> words.WordSource:
  """Words of two letters whose first letter says everything."""
  spelled = [letter + 'a' for letter in (words.LETTERS * 2)[:count]]
  phonemes = np.full((count, words.MAX_PHONEMES + 1), words.PAD, np.int32)
  for row, word in zip(phonemes, spelled, strict=True):
    row[:3] = words.FIRST_PHONEME + words.LETTERS.index(word[0]) % 5, words.FIRST_PHONEME + 7, words.END
  variants = [(tuple(map(int, row[:2])),) for row in phonemes]
  return words.WordSource({'letters': words.letter_ids(spelled), 'phonemes': phonemes}, spelled, variants)


@functools.cache
def models():
  unified = UnifiedPerceiver(speech.unified_config(RECIPE), rngs=nnx.Rngs(0))
  transformer = Transformer(speech.transformer_config(RECIPE), rngs=nnx.Rngs(0))
  return {'unified': (unified, speech.unified_logits), 'transformer': (transformer, speech.transformer_logits)}


@pytest.mark.parametrize('name', ['unified', 'transformer'])
def test_no_score_knows_later_phonemes_and_all_know_every_letter(name):
  model, logits = models()[name]
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
  model, logits = models()[name]
  letters, t = words.letter_ids(['phone', 'a']), RECIPE.num_timesteps
  speak = speech.speak if name == 'unified' else functools.partial(speech.speak_by_transformer, num_timesteps=t)
  said = np.asarray(speak(model, letters, num_beams=1))
  scores = np.asarray(jax.jit(logits)(model, letters, speech.shifted(jnp.asarray(said))))
  valid = said != words.PAD
  assert np.array_equal(scores.argmax(-1)[valid], said[valid]) and valid[:, 0].all()


def test_both_models_take_about_the_same_operations_in_demo_size():
  recipe = speech.RECIPES['demo']
  unified = abstract(UnifiedPerceiver, speech.unified_config(recipe))
  transformer = abstract(Transformer, speech.transformer_config(recipe))
  ours = speech.flops_a_word(speech.unified_logits, unified, recipe.num_timesteps)
  theirs = speech.flops_a_word(speech.transformer_logits, transformer, recipe.num_timesteps)
  assert theirs == pytest.approx(ours, rel=0.05)


def test_a_short_training_learns_more_than_how_often_a_phoneme_comes():
  recipe = dataclasses.replace(RECIPE, train_steps=30, batch_size=26, learning_rate=1e-2)
  train = word_source(26)
  model, logits = models()['transformer']
  result = speech.train_speller(model, logits, train, train, recipe=recipe, seed=0, evaluations=1, progress='silent')
  assert result.history[-1]['validation_loss'] < 0.7 * speech.phoneme_entropy(train)
  said = functools.partial(speech.speak_by_transformer, num_timesteps=RECIPE.num_timesteps)
  rates = speech.spoken_error_rates(functools.partial(said, result.model), train, batch_size=26)
  assert rates.token_error_best < 0.6


def test_words_that_are_too_long_are_left_out_and_hidden_letters_cost_what_they_say():
  source = word_source(5)
  source.arrays['phonemes'][0, : RECIPE.num_timesteps + 1] = 40
  assert len(speech.training_words(source, RECIPE.num_timesteps)) == 4
  model, logits = models()['unified']
  letters, said = words.letter_ids(['phone'])[0], np.array([40, 41, words.END, 0, 0, 0, 0], np.int32)
  names, phonemes, cost = speech.aligned(logits, model, 'phone', letters, said)
  assert names == list('phone') and phonemes == [words.PHONEMES[n - words.FIRST_PHONEME] for n in (40, 41)]
  whole, without = (
    jax.nn.softmax(jax.jit(logits)(model, row[None], speech.shifted(jnp.asarray(said[None]))))[0, 1, 41]
    for row in (letters, np.where(np.arange(len(letters)) == 3, words.PAD, letters))
  )
  assert cost.shape == (2, 5) and cost[1, 3] == pytest.approx(float(whole - without), abs=1e-5)


def test_the_sketch_breaks_the_rule_and_all_of_ours_keep_it():
  sketch, *ours = (causality.num_violations(p, causality.sensitivity(p, 0)) for p in rule.probes(0))
  assert sketch > 0 and ours == [0, 0]


def test_blocks_are_planned_with_less_memory_than_the_whole_matrix():
  size = rule.ProcessorSize(num_timesteps=32, num_latents=64, num_latent_channels=32, num_layers=2, num_heads=8)
  ours, naive = (rule.processor_gigabytes(size, naive=naive) for naive in (False, True))
  assert 0 < ours < naive / 4


def test_both_reads_of_the_bytes_compute_the_same_loss():
  prefix, general = (unified_bytes.measure_bytes(2**10, how) for how in ('prefix', 'general'))
  assert prefix['loss'] == pytest.approx(general['loss'], rel=1e-5)


def digit_model():
  recipe = unified_digits.RECIPES['smoke']
  model = UnifiedPerceiver(unified_digits.digit_config(recipe, (28, 28, 1)), rngs=nnx.Rngs(0))
  return filled(model, scale=0.2)


def test_names_are_bytes_and_a_namer_spells_what_it_scores_highest():
  assert unified_digits.name_ids(np.array([7])).tolist() == [[121, 107, 124, 107, 116, 2]]
  model = digit_model()
  images = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
  place, same = np.random.default_rng(2).permutation(196), np.arange(196)
  ids = np.asarray(unified_digits._named(model, images, same, same))
  names = jnp.asarray(ids)
  scores = [
    np.asarray(
      jax.jit(unified_digits.next_letter_logits)(
        model, unified_digits.image_tokens(jnp.asarray(images), **moved), names
      )
    )
    for moved in ({}, {'order': jnp.asarray(place)}, {'place': jnp.asarray(place)})
  ]
  assert np.array_equal(scores[0].argmax(-1), ids)
  assert_close(scores[1], scores[0], 10 * ROUNDING)
  assert np.abs(scores[2] - scores[0]).max() > 1e-3
  back = unified_digits.torn(unified_digits.torn(images, place), np.argsort(place))
  assert np.array_equal(back, images)


def moving_clips(count: int = 3) -> Clips:
  random, num_frames = np.random.default_rng(0), 4
  frames = random.integers(0, 256, (count * num_frames, 8, 8, 3), dtype=np.uint8)
  samples = random.normal(size=film.sample_index(len(frames)) + 16).astype(np.float32)
  cuts = np.zeros(len(frames), bool)
  cuts[3] = True
  return Clips(Film(frames=frames, samples=samples, cuts=cuts), np.arange(count) * num_frames, num_frames)


def test_an_untrained_predictor_copies_the_last_frame_and_knows_no_later_one():
  clips, recipe = moving_clips(), unified_film.RECIPES['smoke']
  model = UnifiedPerceiver(unified_film.film_config(recipe, (8, 8, 3)), rngs=nnx.Rngs(0))
  copied = video_baselines(clips)['copy last frame']
  ours = unified_film.film_psnr(model, clips, recipe)
  assert tuple(ours) == pytest.approx(tuple(copied), rel=1e-6)
  assert tuple(unified_film.softened_copy_psnr(clips, 0.0)) == pytest.approx(tuple(copied), rel=1e-6)
  assert unified_film.softened_copy_psnr(clips, 1.0).all > copied.all  # of noise, the mean is the better guess
  kernel = model.decoder.output.kernel
  kernel[...] = jax.random.normal(jax.random.key(0), kernel[...].shape)
  predict = jax.jit(lambda frames, samples: unified_film.predicted_frames(model, frames, samples, recipe.patch_size))
  clip = clips[0]
  frames, samples = clip['frames'][None, :-1], clip['samples'][None]
  later, louder = frames.copy(), samples.copy()
  later[:, 2], louder[:, -16 * 150 :] = 0, 1.0
  before, after, heard = (np.asarray(predict(f, s)) for f, s in ((frames, samples), (later, samples), (frames, louder)))
  assert np.array_equal(before[:, :2], after[:, :2]) and not np.array_equal(before[:, 2], after[:, 2])
  assert np.array_equal(before[:, 0], heard[:, 0])
  assert unified_film.lively_clip(clips).starts[0] in (4, 8)
