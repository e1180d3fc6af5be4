"""What notebook 09 asks of its trained models: how their answers fare without some inputs, and what long maps cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.data import pronunciation
from perceiver_lib.experiments.measuring import measure, peak_bytes
from perceiver_lib.experiments.workers import in_fresh_process
from perceiver_lib.lessons import images
from perceiver_lib.lessons import unified_pronunciation as speech
from perceiver_lib.lessons.sentences import sentence_tokens
from perceiver_lib.lessons.tour import random_bytes
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.models.unified import UnifiedPerceiver
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.tokens import Tokens

Arrays = Mapping[str, Any]
Quality = Callable[[Bool[np.ndarray, 'b m']], Float[np.ndarray, 'b']]
"""Which inputs exist -> how good the answer is, example by example."""


def probability_of_label(model: Perceiver, view: images.ReadPixels, examples: Arrays) -> Quality:
  """Probability of the right class while pixels are missing: a set can lack members, no grey has to stand in."""
  tokens = pixel_tokens(jnp.asarray(examples['image']), integer_positions=view.integer_positions)
  labels = jnp.asarray(examples['label'])[:, None]

  @jax.jit
  def quality(valid: Array) -> Float[Array, 'b']:
    shares = jax.nn.softmax(model(dataclasses.replace(tokens, valid=valid)))
    return jnp.take_along_axis(shares, labels, axis=1)[:, 0]

  return lambda valid: np.asarray(quality(valid))


def probability_of_byte(model: PerceiverIO, examples: Arrays, places: Int[np.ndarray, 'b']) -> Quality:
  """Probability of the right byte at one place of each sentence, while other bytes are missing."""
  asked = Tokens(values=jnp.asarray(places, jnp.int32)[:, None])
  labels = jnp.take_along_axis(jnp.asarray(examples['labels']), asked.values, axis=1)

  @jax.jit
  def quality(valid: Array) -> Float[Array, 'b']:
    shares = jax.nn.softmax(model(sentence_tokens(jnp.asarray(examples['ids']), valid), asked))
    return jnp.take_along_axis(shares[:, 0], labels, axis=1)[:, 0]

  return lambda valid: np.asarray(quality(valid))


def probability_of_copy(model: PerceiverAR, inputs: Tokens, targets: Int[np.ndarray, 'b']) -> Quality:
  """Probability of the right byte behind the last input, while earlier ones are missing."""

  @jax.jit
  def quality(valid: Array) -> Float[Array, 'b']:
    logits = model(dataclasses.replace(inputs, valid=valid), num_latents=1).values[:, -1]
    return jnp.take_along_axis(jax.nn.softmax(logits), jnp.asarray(targets)[:, None], axis=1)[:, 0]

  return lambda valid: np.asarray(quality(valid))


def probability_of_phoneme(
  model: UnifiedPerceiver, letters: Int[np.ndarray, 'b m'], phonemes: Int[np.ndarray, 'b t'], step: Int[np.ndarray, 'b']
) -> Quality:
  """Probability of the right phoneme at one timestep of each word, while letters are missing."""
  known, place = speech.shifted(jnp.asarray(phonemes)), jnp.asarray(step)[:, None]
  right = jnp.take_along_axis(jnp.asarray(phonemes), place, axis=1)

  @jax.jit
  def quality(valid: Array) -> Float[Array, 'b']:
    shares = jax.nn.softmax(speech.unified_logits(model, jnp.where(valid, letters, pronunciation.PAD), known))
    at_step = jnp.take_along_axis(shares, place[:, :, None], axis=1)[:, 0]
    return jnp.take_along_axis(at_step, right, axis=1)[:, 0]

  return lambda valid: np.asarray(quality(valid))


def measure_long(num_bytes: int) -> dict[str, float]:
  """Two latents' maps of one head over a long input: memory of this process, beside the call without maps.

  Returns:
    The `Cost` of a call with maps, `plain_seconds` and `plain_temporary_megabytes` without, `start_gigabytes` of this
    process before the model was made, `map_megabytes` that come back, `whole_gigabytes` of all maps of this read, and
    `difference` of the logits over the largest.
  """
  config = dataclasses.replace(PerceiverConfig.of_bytes(num_bytes), num_self_attends_per_block=1)
  tokens, start = random_bytes(num_bytes), peak_bytes()
  model = filled(abstract(Perceiver, config), scale=0.02)
  captured = capture_attention(
    lambda model, tokens: model(tokens), names=['encoder.cross_attention.0'], heads=[3], queries=[7, 200]
  )
  logits, plain = measure(lambda model, tokens: model(tokens), model, tokens)
  (same, maps), with_maps = measure(captured, model, tokens)
  one = maps['encoder.cross_attention.0']
  return {
    'num_bytes': num_bytes,
    'start_gigabytes': start / 1e9,
    'map_megabytes': sum(leaf.nbytes for leaf in jax.tree.leaves(maps)) / 1e6,
    'whole_gigabytes': 2 * 4 * config.num_latents * config.cross_attend.num_heads * num_bytes / 1e9,
    'difference': float(jnp.max(jnp.abs(logits - same)) / jnp.max(jnp.abs(logits))),
    'row_sum_error': float(jnp.max(jnp.abs(one.weights.sum(-1) - 1))),
    'plain_seconds': plain.seconds,
    'plain_temporary_megabytes': plain.temporary_megabytes,
    **dataclasses.asdict(with_maps),
  }


def measure_long_in_fresh_process(log2_bytes: int) -> dict[str, float]:
  """`measure_long` in a process of its own."""
  return in_fresh_process('perceiver_lib.lessons.attention_answers:measure_long', num_bytes=2**log2_bytes)
