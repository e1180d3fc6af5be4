"""Generation against recomputation, sampling against its distribution, beam search against all continuations."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, LearnedPositions
from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.generation.beam_search import beam_search
from perceiver_lib.generation.replay import replay
from perceiver_lib.generation.stream import GREEDY, Sampler, generate, stream
from perceiver_lib.modalities.text_context import ContextAdapterConfig, with_previous
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from tests.support import assert_close

VOCABULARY = 7
CACHED = 1e-5
"""Largest difference of cached and recomputed float32 logits over their largest magnitude."""

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 6)).astype(np.int32)
VALID = np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], bool)


def model_of(seed: int = 0, **changes) -> PerceiverAR:
  model = PerceiverAR(dataclasses.replace(PerceiverARConfig.tiny(VOCABULARY), **changes), rngs=nnx.Rngs(seed))
  return filled(model, scale=0.3, seed=seed)


def recomputed(model: PerceiverAR, window: LatentWindow, row: list[int], tokens: list[int]) -> list[np.ndarray]:
  """Logits before each of the tokens by whole forward passes, under the policy that `LatentWindow` states.

  From one refill to the next, latents are added and none leaves: one pass with all of them has the logits of each.
  """
  width, logits = max(len(row) + len(tokens), window.context_length), []
  while len(logits) < len(tokens):
    done = len(logits)
    count = min(window.num_latents - window.num_start_latents + 1, len(tokens) - done)
    history = (row + tokens[:done])[-window.keep :] + tokens[done : done + count - 1]
    # Padded on the right to one shape, which changes nothing and compiles once for each number of latents.
    values = np.zeros((1, width), np.int32)
    values[0, : len(history)] = history
    inputs = Tokens(values=jnp.asarray(values), valid=jnp.asarray(np.arange(width)[None] < len(history)))
    found = _logits(*nnx.split(model), inputs, window.num_start_latents + count - 1)
    logits += list(np.asarray(found)[0, -count:])
  return logits


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(graphdef, params, inputs, num_latents):
  return nnx.merge(graphdef, params)(inputs, num_latents=num_latents).values


def steps(model: PerceiverAR, window: LatentWindow, prompt: Tokens, tokens: np.ndarray) -> np.ndarray:
  """Logits before each token by the cache, as long as nothing slides."""
  later = Tokens(values=jnp.asarray(tokens[:, :-1]), valid=jnp.ones(tokens[:, :-1].shape, bool))
  whole = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), prompt, later)
  return np.asarray(jax.jit(lambda whole: replay(model, whole, window, num_steps=later.num_tokens))(whole))


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'key_norm': 'query_norm', 'num_rotary_layers': 1, 'output': 'tied'},
    {
      'input_adapter': EmbeddingAdapterConfig(
        num_embeddings=VOCABULARY, num_channels=16, position=LearnedPositions(shape=(16,), num_channels=16)
      )
    },
  ],
)
def test_cached_logits_equal_recomputed_ones_at_every_step(changes):
  model, window = model_of(**changes), LatentWindow(context_length=16, num_latents=8, num_start_latents=3)
  order = np.argsort(VALID, axis=1, kind='stable')
  ids, valid = (np.take_along_axis(array, order, axis=1) for array in (IDS, VALID))
  tokens = np.random.default_rng(1).integers(0, VOCABULARY, (3, 6)).astype(np.int32)
  found = steps(model, window, Tokens(values=jnp.asarray(ids), valid=jnp.asarray(valid)), tokens)
  for row in range(3):
    expected = recomputed(model, window, IDS[row][VALID[row]].tolist(), tokens[row].tolist())
    assert_close([logits[row] for logits in found], expected, CACHED)


def test_generation_goes_beyond_the_window_as_recomputation_does():
  """Twenty-three tokens through a window of ten with two latent layers: six refills, rows of different lengths."""
  model, window = model_of(), LatentWindow(context_length=10, num_latents=6, num_start_latents=3)
  tokens = generate(model, IDS, valid=VALID, window=window, num_tokens=23)
  assert tokens.shape == (3, 23)
  for row in range(3):
    logits = recomputed(model, window, IDS[row][VALID[row]].tolist(), tokens[row].tolist())
    # Greedy tokens are compared through logits, so that a tie within rounding is no failure.
    for token, before in zip(tokens[row], logits, strict=True):
      assert before[token] >= before.max() - CACHED * np.abs(before).max()
  assert len(np.unique(tokens)) > 2


def test_tokens_that_carry_those_before_them_are_made_as_they_are_read():
  adapter = ContextAdapterConfig(
    num_ids=3, num_embeddings=VOCABULARY, num_id_channels=5, num_channels=16, position=None
  )
  model = model_of(input_adapter=adapter)
  window = LatentWindow(context_length=16, num_latents=8, num_start_latents=4)
  made = generate(model, IDS[:1], window=window, num_tokens=5, num_ids=3)
  inputs = with_previous(Tokens(values=jnp.asarray(np.concatenate([IDS[:1], made[:, :-1]], axis=1))), 3)
  np.testing.assert_array_equal(jnp.argmax(model(inputs, num_latents=8).values, -1)[:, -5:], made)


def test_a_later_token_never_changes_the_cache_of_an_earlier_one():
  model, window = model_of(), LatentWindow(context_length=12, num_latents=8, num_start_latents=3)
  prompt = Tokens(values=jnp.asarray(IDS), valid=jnp.ones(IDS.shape, bool))
  first = np.array([[1, 2, 3, 4]] * 3, np.int32)
  second = np.array([[1, 2, 5, 6]] * 3, np.int32)
  one, two = steps(model, window, prompt, first), steps(model, window, prompt, second)
  for place in range(3):
    np.testing.assert_array_equal(one[place], two[place])
  assert not np.allclose(one[3], two[3], atol=1e-3)


def test_the_jacobian_of_the_cache_has_no_future_and_no_padding():
  """Inputs as channels cannot be generated, so the derivative is taken with respect to the embedding of each token."""
  model, window = model_of(), LatentWindow(context_length=9, num_latents=6, num_start_latents=3)
  graphdef, params = nnx.split(model)
  sequence = np.arange(VOCABULARY, dtype=np.int32)  # every id once, so that an id is a place

  def outputs(params, prompt_valid):
    model = nnx.merge(graphdef, params)
    prompt = Tokens(values=jnp.asarray(sequence[None, :4]), valid=prompt_valid[None])
    cache, logits = model.start(prompt, window, room=3)
    step = lambda cache, token: model.step(cache, Tokens(values=token[None, None]))  # noqa: E731
    _, later = jax.lax.scan(step, cache, jnp.asarray(sequence[4:]))
    return jnp.concatenate([logits[None], later])[:, 0].sum(-1)

  jacobian_of = jax.jit(lambda *arguments: jax.jacrev(outputs)(*arguments)['input_adapter']['embedding'][...])
  for prompt_valid in ([1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]):
    jacobian = np.abs(np.asarray(jacobian_of(params, np.array(prompt_valid, bool)))).max(-1)
    allowed = (np.arange(VOCABULARY) < 4 + np.arange(4)[:, None]) & np.array([*prompt_valid, 1, 1, 1], bool)
    assert (jacobian[~allowed] == 0).all()
    assert (jacobian[allowed] > 0).all()


def test_stream_seed_and_chunks():
  model, window = model_of(), LatentWindow(context_length=10, num_latents=6, num_start_latents=3)
  settings = {'valid': VALID, 'window': window, 'num_tokens': 11, 'sampler': Sampler(temperature=2.0)}
  whole = generate(model, IDS, seed=5, **settings)
  for chunk_size in (1, 4):
    chunks = list(stream(model, IDS, seed=5, chunk_size=chunk_size, **settings))
    assert [chunk.shape[1] for chunk in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), whole)
  assert (generate(model, IDS, seed=6, **settings) != whole).any()
  alone = generate(model, IDS[:1], seed=5, window=window, num_tokens=11, sampler=Sampler(temperature=2.0))
  np.testing.assert_array_equal(alone[0], whole[0])


def test_masks_allow_what_they_allow_at_each_token():
  model, window = model_of(), LatentWindow(context_length=10, num_latents=6, num_start_latents=3)
  allowed = np.zeros((8, VOCABULARY), bool)
  allowed[::2, :3], allowed[1::2, 3:] = True, True
  tokens = generate(model, IDS, window=window, num_tokens=8, sampler=Sampler(temperature=5.0), allowed=allowed)
  assert (tokens[:, ::2] < 3).all() and (tokens[:, 1::2] >= 3).all()
  one = np.arange(VOCABULARY)[None] == 4
  assert (generate(model, IDS, window=window, num_tokens=5, allowed=one) == 4).all()


def test_given_positions_are_those_of_each_rows_own_count():
  adapter = EmbeddingAdapterConfig(
    num_embeddings=VOCABULARY, num_channels=16, position=LearnedPositions(shape=(40,), num_channels=16)
  )
  model, window = model_of(input_adapter=adapter), LatentWindow(context_length=16, num_latents=12, num_start_latents=3)
  counted = generate(model, IDS, valid=VALID, window=window, num_tokens=9)
  count = np.arange(15)[None, :, None]
  np.testing.assert_array_equal(
    generate(model, IDS, valid=VALID, window=window, num_tokens=9, positions=count), counted
  )
  shifted = generate(model, IDS, valid=VALID, window=window, num_tokens=9, positions=count + 20)
  assert (shifted != counted).any()


def test_samplers_have_the_exact_support():
  logits = jnp.log(jnp.array([[0.4, 0.05, 0.3, 0.05, 0.2]]))
  cases = {
    GREEDY: [0],
    Sampler(): [0, 1, 2, 3, 4],
    Sampler(top_p=0.4 - 1e-3): [0],
    Sampler(top_p=0.4 + 1e-3): [0, 2],
    Sampler(top_p=0.9 + 1e-3): [0, 1, 2, 4],
    Sampler(top_p=1.0): [0, 1, 2, 3, 4],
    Sampler(temperature=0.1, top_p=0.9): [0],
  }
  for sampler, support in cases.items():
    assert np.flatnonzero(np.isfinite(np.asarray(sampler.filtered(logits)[0]))).tolist() == support, sampler


@pytest.mark.parametrize('sampler', [Sampler(), Sampler(temperature=0.5), Sampler(top_p=0.8)])
def test_draws_have_the_distribution_of_the_filtered_logits(sampler):
  logits = jnp.log(jnp.array([0.4, 0.05, 0.25, 0.1, 0.2]))
  keys = jax.random.split(jax.random.key(7), 4000)
  draws = np.asarray(sampler(jnp.broadcast_to(logits, (4000, 5)), keys))
  expected = 4000 * np.asarray(jax.nn.softmax(sampler.filtered(logits[None])[0]))
  counts = np.bincount(draws, minlength=5)
  assert (counts[expected == 0] == 0).all()
  chi_square = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
  # The 99.9 % point of chi-square with 4 degrees of freedom; fewer degrees have a smaller one.
  assert chi_square < 18.5


END = 1


def search(model: PerceiverAR, end_token: int = END, **settings):
  window = LatentWindow(context_length=12, num_latents=8, num_start_latents=3)

  @nnx.jit
  def run(model, prompt):
    cache, logits = model.start(prompt, window, room=window.room)
    step = lambda cache, token: model.step(cache, Tokens(values=token[:, None]))  # noqa: E731
    return beam_search(step, cache, logits, end_token=end_token, **settings)

  return run(model, Tokens(values=jnp.asarray(IDS[:2])))


def exhaustive(model: PerceiverAR, num_tokens: int) -> list[list[tuple[float, list[int]]]]:
  """Scores of every continuation of both prompts, best first, from forward passes without a cache."""
  sequences = np.array(list(itertools.product(range(VOCABULARY), repeat=num_tokens)), np.int32)
  ranked = []
  for prompt in IDS[:2]:
    rows = np.concatenate([np.repeat(prompt[None], len(sequences), 0), sequences[:, :-1]], axis=1)
    run = nnx.jit(lambda model, tokens: model(tokens, num_latents=3 + num_tokens - 1).values[:, -num_tokens:])
    logits = run(model, Tokens(values=jnp.asarray(rows)))
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), sequences[..., None], axis=2)[..., 0]
    scores = {}
    for sequence, each in zip(sequences, log_p, strict=True):
      length = min(sequence.tolist().index(END) + 1, num_tokens) if END in sequence else num_tokens
      ended = tuple(sequence[:length].tolist() + [0] * (num_tokens - length))
      scores[ended, length] = each[:length].sum()
    ranked.append(sorted(((score, list(tokens)) for (tokens, _), score in scores.items()), reverse=True))
  return ranked


def test_a_wide_beam_finds_the_best_of_all_continuations():
  model = model_of(1)
  beams = search(model, num_beams=60, num_tokens=3)
  for row, ranked in enumerate(exhaustive(model, 3)):
    assert_close(beams.log_probabilities[row, :5], np.array([score for score, _ in ranked[:5]]), CACHED)
    assert beams.tokens[row, 0].tolist() == ranked[0][1]
  np.testing.assert_array_less(beams.log_probabilities[:, 1:], beams.log_probabilities[:, :-1] + 1e-6)


def test_a_beam_of_one_is_greedy():
  model, window = model_of(1), LatentWindow(context_length=12, num_latents=8, num_start_latents=3)
  tokens = generate(model, IDS[:2], window=window, num_tokens=5)
  is_end = tokens == tokens[0, 2]
  ended = np.cumsum(is_end, axis=1) - is_end > 0
  beams = search(model, end_token=int(tokens[0, 2]), num_beams=1, num_tokens=5)
  np.testing.assert_array_equal(beams.tokens[:, 0], np.where(ended, 0, tokens))


@pytest.mark.parametrize(
  ('settings', 'sentence'),
  [
    ({'valid': np.zeros_like(VALID)}, 'each with a valid token'),
    ({'num_tokens': 0}, '1 or more'),
    ({'allowed': np.zeros((1, VOCABULARY), bool)}, 'an id in each row'),
    ({'positions': np.zeros((1, 7, 1), np.int32)}, 'at least 9'),
  ],
)
def test_bad_requests_are_refused_before_the_first_token(settings, sentence):
  window = LatentWindow(context_length=10, num_latents=6, num_start_latents=3)
  with pytest.raises(ValueError, match=sentence):
    stream(model_of(), IDS, **({'window': window, 'num_tokens': 3} | settings))


def test_windows_and_samplers_refuse_what_cannot_be():
  with pytest.raises(ValueError, match='num_start_latents <= num_latents <= context_length'):
    LatentWindow(context_length=10, num_latents=6, num_start_latents=7)
  for bad in ({'temperature': -1.0}, {'top_p': 0.0}):
    with pytest.raises(ValueError, match=r'(temperature|top_p) must be a number'):
      Sampler(**bad)
