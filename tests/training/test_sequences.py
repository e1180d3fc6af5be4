"""Shifts, crops and strided windows: what is a target, where latents fall, and that every token is scored once."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.models.last_inputs import last_valid
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.sequences import (
  FullLatents,
  MinimumCrop,
  latent_targets,
  next_token_loss,
  next_tokens,
  random_crop,
)
from perceiver_lib.training.strided import StridedWindows, evaluate_strided
from tests.support import assert_close

VOCABULARY, BEGIN = 7, 0


def tiny(**changes) -> PerceiverAR:
  model = PerceiverAR(dataclasses.replace(PerceiverARConfig.tiny(VOCABULARY), **changes), rngs=nnx.Rngs(0))
  return filled(model, scale=0.3)


def forward(model: PerceiverAR, row: list[int], num_latents: int) -> np.ndarray:
  """Log-probabilities `[n, e]` of one row, padded to one length so that it compiles once."""
  values, valid = np.zeros((1, 9), np.int32), np.arange(9)[None] < len(row)
  values[0, : len(row)] = row
  tokens = Tokens(values=jnp.asarray(values), valid=jnp.asarray(valid))
  return np.asarray(jax.nn.log_softmax(_logits(*nnx.split(model), tokens, num_latents)[0]))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(graphdef, params, tokens, num_latents):
  return nnx.merge(graphdef, params)(tokens, num_latents=num_latents).values


def pairs(examples) -> list[list[tuple[int, int]]]:
  """(input, target) of every scored position, a row each."""
  arrays = (examples.inputs.values, examples.targets, examples.scored)
  return [[(int(i), int(t)) for i, t, s in zip(*row, strict=True) if s] for row in zip(*arrays, strict=True)]


def test_targets_are_the_tokens_behind_the_inputs():
  ids = jnp.array([[5, 6, 7, 8], [0, 5, 6, 7], [5, 6, 0, 0]])
  valid = jnp.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]], bool)
  shifted = next_tokens(ids, valid=valid)
  assert pairs(shifted) == [[(5, 6), (6, 7), (7, 8)], [(5, 6), (6, 7)], [(5, 6)]]
  np.testing.assert_array_equal(shifted.inputs.valid, shifted.scored)
  masked = next_tokens(ids, valid=valid, label_mask=jnp.array([[0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]], bool))
  assert pairs(masked) == [[(6, 7)], [(5, 6), (6, 7)], []]
  np.testing.assert_array_equal(masked.inputs.valid, shifted.inputs.valid)
  begun = next_tokens(ids[::2], valid=valid[::2], begin_token=1)
  assert pairs(begun) == [[(1, 5), (5, 6), (6, 7), (7, 8)], [(1, 5), (5, 6)]]


def test_shifts_refuse_what_cannot_be():
  ids = jnp.zeros((2, 4), jnp.int32)
  with pytest.raises(ValueError, match='pad the rows on the right'):
    next_tokens(ids, valid=jnp.array([[0, 1, 1, 1]] * 2, bool), begin_token=1)
  with pytest.raises(ValueError, match='no position of its own'):
    next_tokens(ids, position=jnp.zeros((2, 4, 1), jnp.int32), begin_token=1)


def coverage(policy, num_latents, valid, scored, num_draws=300) -> tuple[np.ndarray, np.ndarray]:
  """How often each position has a scored latent, and the lengths of the crops."""
  ids = jnp.broadcast_to(jnp.arange(valid.shape[1] + 1), (valid.shape[0], valid.shape[1] + 1))
  examples = next_tokens(ids)
  inputs = dataclasses.replace(examples.inputs, valid=jnp.asarray(valid))
  examples = dataclasses.replace(examples, inputs=inputs, scored=jnp.asarray(scored & valid))

  def one(key):
    crop = random_crop(examples, policy, key)
    index = last_valid(crop.inputs.valid, num_latents)
    latents = Tokens(values=index, time=index, valid=index >= 0)
    targets, counted = latent_targets(crop, latents)
    covered = jnp.zeros(valid.shape, bool).at[jnp.arange(len(valid))[:, None], jnp.maximum(targets - 1, 0)].max(counted)
    return covered, crop.inputs.valid.sum(1)

  covered, lengths = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_draws))
  return np.asarray(covered).mean(0), np.asarray(lengths)


def test_crops_put_latents_on_early_positions_and_end_everywhere():
  everything = np.ones((1, 13), bool)
  whole, lengths = coverage(MinimumCrop(length=13), 4, everything, everything)
  assert (whole[0] > 0).tolist() == [False] * 9 + [True] * 4  # what random ends are for
  full, lengths = coverage(FullLatents(num_latents=4), 4, everything, everything)
  assert set(lengths.ravel().tolist()) == set(range(4, 14))
  assert (full[0] > 0).all()
  short, lengths = coverage(MinimumCrop(length=1), 4, everything, everything)
  assert set(lengths.ravel().tolist()) == set(range(1, 14))
  # Early positions: 4 of 13 ends for each of the first ten, so 0.31; full latents: 1 of 10 ends for the first's last.
  np.testing.assert_allclose(short[0, :10], 4 / 13, atol=5 * math.sqrt(0.21 / 300))
  np.testing.assert_allclose(full[0, 3:10], 4 / 10, atol=5 * math.sqrt(0.24 / 300))


def test_crops_of_full_latents_always_score_something_and_respect_padding():
  valid = np.ones((3, 13), bool)
  valid[1, :4], valid[2, 3:] = False, False
  scored = np.zeros_like(valid)
  scored[:, 7:], scored[2] = True, True
  covered, lengths = coverage(FullLatents(num_latents=4), 4, valid, scored)
  # Row 0 scores from its input 8 on, row 1 from its input 4 on; row 2 has three inputs and stays whole.
  assert (lengths[:, 0].min(), lengths[:, 0].max()) == (8, 13)
  assert (lengths[:, 1].min(), lengths[:, 1].max()) == (4, 9)
  assert set(lengths[:, 2].tolist()) == {3}
  assert (covered[scored & valid] > 0).all()
  assert (covered[~(scored & valid)] == 0).all()


def test_the_loss_is_on_scored_latents_only():
  model = tiny(num_latents=4)
  ids = jnp.asarray(np.random.default_rng(0).integers(1, VOCABULARY, (2, 10)), jnp.int32)
  mask = jnp.arange(10)[None] % 3 == jnp.array([[0], [1]])
  examples = next_tokens(ids, label_mask=mask)
  logits = nnx.jit(lambda model, inputs: model(inputs))(model, examples.inputs)
  loss, measured = next_token_loss(logits, examples, z_loss=1e-2)
  log_p = np.asarray(jax.nn.log_softmax(logits.values))
  log_z = np.asarray(jax.nn.logsumexp(logits.values, axis=-1))
  terms, squares = [], []
  for row in range(2):
    for slot, place in enumerate(range(5, 9)):
      if mask[row, place + 1]:
        terms.append(-log_p[row, slot, int(ids[row, place + 1])])
        squares.append(log_z[row, slot] ** 2)
  assert len(terms) == 3
  assert_close(measured['nats_per_token'], np.mean(terms))
  assert_close(loss, np.mean(terms) + 1e-2 * np.mean(squares))


@pytest.mark.parametrize(('context_length', 'stride'), [(8, 3), (8, 8), (5, 1), (40, 4)])
def test_strided_windows_score_every_token_once_with_the_newest_context(context_length, stride):
  documents = [np.arange(1 + 100 * d, 1 + 100 * d + size) for d, size in enumerate((17, 1, 3, 0, 8))]
  windows = StridedWindows(documents=documents, context_length=context_length, stride=stride, begin_token=BEGIN)
  seen, num_rows = [], 0
  for batch in windows.batches(4):
    assert batch['inputs'].shape == (4, context_length)
    for inputs, targets, valid, scored in zip(
      *(batch[k] for k in ('inputs', 'targets', 'valid', 'scored')), strict=True
    ):
      if not valid.any():
        continue
      num_rows += 1
      seen += targets[scored].tolist()
      assert not (scored & ~valid).any()
      assert scored.sum() <= stride
      size = valid.sum()
      assert valid[:size].all() and scored[size - scored.sum() : size].all()
      np.testing.assert_array_equal(inputs[1:size], targets[: size - 1])
      first = targets[0] % 100 == 1
      assert inputs[0] == (BEGIN if first else targets[0] - 1)
      assert first or size == context_length
  assert sorted(seen) == sorted(np.concatenate(documents).tolist())
  assert num_rows == len(windows) and len(seen) == windows.num_tokens


def test_strided_evaluation_equals_one_forward_pass_per_window():
  model = tiny(num_latents=6)
  documents = [np.random.default_rng(d).integers(1, VOCABULARY, size) for d, size in enumerate((9, 4))]
  windows = StridedWindows(documents=documents, context_length=7, stride=3, begin_token=BEGIN)
  score = evaluate_strided(model, windows, num_latents=5, batch_size=2)
  nats = 0.0
  for document in documents:
    text = [BEGIN, *document.tolist()]
    for first in range(0, len(document), 3):
      stop = min(first + 3, len(document))
      row = text[max(stop - 7, 0) : stop]
      logits = forward(model, row, 5)
      nats -= sum(logits[5 - stop + place, text[place + 1]] for place in range(first, stop))
  assert_close(score.nats_per_token, nats / 13, 1e-5)
  assert (score.stride, score.num_tokens, score.num_latents, score.context_length) == (3, 13, 5, 7)
  assert score.bits_per_byte == pytest.approx(score.nats_per_token / math.log(2))
  assert score.perplexity == pytest.approx(math.exp(score.nats_per_token))


def test_strided_evaluation_refuses_bytes_without_a_latent():
  windows = StridedWindows(documents=[np.arange(9)], context_length=8, stride=6, begin_token=BEGIN)
  with pytest.raises(ValueError, match='at most the 5 latents'):
    evaluate_strided(tiny(), windows, num_latents=5)
  with pytest.raises(ValueError, match='A stride must be'):
    dataclasses.replace(windows, stride=9)
  with pytest.raises(ValueError, match='all of these are empty'):
    dataclasses.replace(windows, documents=[np.arange(0)])
