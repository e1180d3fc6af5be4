"""Notebook 09: a call with its maps, what the gradient and a replaced symbol say, and what deletion says.

What is measured on maps is in `scores.attention_maps`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.capture import AttentionMap, capture_attention
from perceiver_lib.attention.rollout import attention_rollout
from perceiver_lib.data import pronunciation as words
from perceiver_lib.data.text import Documents, Windows
from perceiver_lib.experiments.measuring import measure, peak_bytes
from perceiver_lib.experiments.workers import in_fresh_process
from perceiver_lib.lessons.tour import random_bytes
from perceiver_lib.lessons.unified_io_ar_tasks import Logits, log_probabilities, shifted
from perceiver_lib.modalities.text import ByteTokenizer
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.scores import attention_maps as measured
from perceiver_lib.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Looked:
  """A call with its maps.

  Attributes:
    output, maps: as `capture_attention` returns them.
    rollout: from the last queries through the latents to the inputs.
    difference: from the output of the same call without maps, over its largest value, or None if not compared.
  """

  output: Any
  maps: dict[str, AttentionMap]
  rollout: Float[Array, 'b i m']
  difference: float | None


def look(call: Callable[..., Any], *args: Any, compare: bool = False) -> Looked:
  """Calls a function of arrays and models with every map captured, compiled; `compare` calls it as it is, too."""
  output, maps, rollout = _with_maps(call)(*args)
  difference = None
  if compare:
    plain = jax.jit(call)(*args)
    values = [found.values if isinstance(found, Tokens) else found for found in (plain, output)]
    difference = float(jnp.max(jnp.abs(values[0] - values[1])) / jnp.max(jnp.abs(values[0])))
  return Looked(output, maps, rollout, difference)


@functools.lru_cache(maxsize=32)
def _with_maps(call: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, AttentionMap], Array]]:
  def with_maps(*args: Any) -> tuple[Any, dict[str, AttentionMap], Array]:
    output, maps = capture_attention(call)(*args)
    latent_inputs = output.time if isinstance(output, Tokens) else None
    return output, maps, attention_rollout(maps, latent_inputs=latent_inputs)

  return jax.jit(with_maps)


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


def measure_long_alone(num_bytes: int) -> dict[str, float]:
  """`measure_long` in a process of its own."""
  return in_fresh_process('perceiver_lib.lessons.attention_maps:measure_long', num_bytes=num_bytes)


def held_out_lines(documents: Documents, length: int, count: int) -> dict[str, np.ndarray]:
  """Windows spread evenly over held-out documents: 'bytes', and the 'labels' of all of them."""
  windows = Windows(documents, length)
  raw = windows.rows(np.linspace(0, len(windows) - 1, count).astype(np.int64).tolist())
  return {'bytes': raw['bytes'], 'labels': ByteTokenizer.ids(raw['bytes'], raw['valid'])}


# Letters under phonemes.

SOUNDS = 'bdfklmnprtvz'
"""Letters whose phoneme has their name, and that no other letter usually writes in the same word."""


class Pairs(NamedTuple):
  """Consonants whose letter and phoneme stand once in their word: there it is known which letter was said."""

  word: Int[np.ndarray, 'k']
  phoneme: Int[np.ndarray, 'k']
  letter: Int[np.ndarray, 'k']

  def score(self, maps: Float[np.ndarray, 'n t m'], letters: Int[np.ndarray, 'n m']) -> measured.OnTruth:
    """How well the maps of all words name the letter of these phonemes; padding is not counted."""
    of_pairs = maps[self.word, self.phoneme][:, None]
    return measured.on_truth(of_pairs, self.letter[:, None], letters[self.word] != words.PAD)


def known_pairs(letters: Int[np.ndarray, 'n m'], phonemes: Int[np.ndarray, 'n t']) -> Pairs:
  """The `Pairs` of words as ids, see `data.pronunciation`."""
  found = []
  for sound in SOUNDS:
    is_letter = letters == words.FIRST_LETTER + words.LETTERS.index(sound)
    is_phoneme = phonemes == words.FIRST_PHONEME + words.PHONEMES.index(sound.upper())
    [rows] = np.nonzero((is_letter.sum(1) == 1) & (is_phoneme.sum(1) == 1))
    found.append((rows, is_phoneme[rows].argmax(1), is_letter[rows].argmax(1)))
  return Pairs(*(np.concatenate(part) for part in zip(*found, strict=True)))


def of_another_word(maps: Float[np.ndarray, 'n t m'], letters: Int[np.ndarray, 'n m']) -> Float[np.ndarray, 'n t m']:
  """Each word gets the map of another one with as many letters, or with the next number of them."""
  order = np.argsort((letters != words.PAD).sum(1), kind='stable')
  others = np.empty_like(maps)
  others[order] = maps[np.roll(order, 1)]
  return others


# Beside a known truth: what the maps should say, found by the gradient and by replacing a symbol.


class _Gated:
  """An adapter whose channels are multiplied by a number a token."""

  def __init__(self, adapter: Any, gate: Float[Array, 'b n']):
    self.adapter, self.gate = adapter, gate

  def __call__(self, tokens: Tokens) -> Float[Array, 'b n c']:
    channels = self.adapter(tokens)
    return channels * self.gate[..., None] if tokens.num_tokens == self.gate.shape[1] else channels


@functools.partial(jax.jit, static_argnums=0)
def gradient_times_input(
  logits: Logits, model: nnx.Module, source: Int[Array, 'b m'], target: Int[Array, 'b t']
) -> Float[Array, 't b m']:
  """Gradient of each right symbol's log-probability along the channels of each source symbol: b t m."""
  (b, m), t = source.shape, target.shape[1]
  adapter = model.input_adapter

  def gated(gate: Float[Array, 'b n']) -> Float[Array, 't']:
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, state)
    copy.input_adapter = nnx.static(_Gated(adapter, gate))
    return log_probabilities(logits(copy, source, shifted(target)), target).sum(0)

  return jnp.moveaxis(jax.jacrev(gated)(jnp.ones((b, m + t))), 0, 1)[..., :m]


class Followed(NamedTuple):
  """Shares in % of outputs that become the new digit where the copied digit, or another one, was swapped for it."""

  itself: float
  another: float


def follows_its_source(
  logits: Logits, model: nnx.Module, rows: Mapping[str, np.ndarray], *, digits: Int[np.ndarray, 'd'], seed: int = 0
) -> Followed:
  """Swaps one digit of the source and sees whether an output that always copies becomes the new one.

  Args:
    rows: 'source' [b, m], 'target' [b, t] and 'copied' [b, t], see `data.dates`.
    digits: ids that take each other's place.
  """
  random, source = np.random.default_rng(seed), rows['source']
  outputs = np.flatnonzero((rows['copied'] >= 0).all(0))
  is_digit, every = np.isin(source, digits), np.arange(len(source))
  say = jax.jit(lambda model, source: logits(model, source, shifted(jnp.asarray(rows['target']))).argmax(-1))
  shares = {'itself': [], 'another': []}
  for output in outputs:
    copied = rows['copied'][:, output]
    others = np.where(is_digit & (np.arange(source.shape[1]) != copied[:, None]), random.random(source.shape), -1)
    for which, place in (('itself', copied), ('another', others.argmax(1))):
      old = (source[every, place][:, None] == digits).argmax(1)
      new = digits[(old + random.integers(1, len(digits), len(source))) % len(digits)]
      swapped = source.copy()
      swapped[every, place] = new
      shares[which].append(np.asarray(say(model, swapped))[:, output] == new)
  return Followed(*(100 * float(np.mean(shares[which])) for which in ('itself', 'another')))


# Deletion.

Quality = Callable[[Bool[np.ndarray, 'b m']], Float[np.ndarray, 'b']]
"""Which inputs exist -> how good the answer is, example by example."""


def probability_of(logits: Callable[[Bool[Array, 'b m']], Float[Array, 'b e']], right: Int[np.ndarray, 'b']) -> Quality:
  """Probability of the right answer while inputs are missing: a set can lack members, nothing has to stand in.

  Args:
    logits: which inputs exist -> scores of the answers.
  """

  @jax.jit
  def quality(valid: Array) -> Float[Array, 'b']:
    return jnp.take_along_axis(jax.nn.softmax(logits(valid)), jnp.asarray(right)[:, None], axis=1)[:, 0]

  return lambda valid: np.asarray(quality(valid))


def deletion_curves(
  quality: Quality,
  attended: Float[np.ndarray, 'b m'],
  removable: Bool[np.ndarray, 'b m'],
  counts: Sequence[int],
  *,
  rule: Float[np.ndarray, 'b m'],
  seed: int,
) -> dict[str, Float[np.ndarray, 'k']]:
  """How an answer fares while inputs are taken away: most or least attended first, by a simple rule, or at random.

  Args:
    quality: which inputs exist -> how good each example's answer is.
    attended: how much each input was attended to.
    removable: inputs that may be taken away.
    counts: how many are gone, from 0.
    rule: what someone who sees no map would expect to matter, most where it is largest.
  """
  random = np.random.default_rng(seed).random(attended.shape)
  scores = {'most attended': -attended, 'by a simple rule': -rule, 'at random': random, 'least attended': attended}
  curves = {}
  for name, score in scores.items():
    rank = np.argsort(np.argsort(np.where(removable, score, np.inf), axis=1, kind='stable'), axis=1)
    curves[name] = np.array([quality(~(removable & (rank < count))).mean() for count in counts])
  return curves
