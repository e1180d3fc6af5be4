"""Notebook 09: a call with its maps, what is measured on maps beside what chance would show, and what deletion says.

Maps are arrays `[..., m]` over the inputs; what is measured on them does not know how they were made.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from perceiver_lib.attention.capture import AttentionMap, capture_attention
from perceiver_lib.attention.rollout import attention_rollout
from perceiver_lib.data.text import Documents, RandomCrops, Windows
from perceiver_lib.experiments.measuring import measure, peak_bytes
from perceiver_lib.experiments.workers import in_fresh_process
from perceiver_lib.lessons.tour import random_bytes
from perceiver_lib.lessons.unified_io_ar_tasks import Logits, log_probabilities, shifted
from perceiver_lib.modalities.text import ByteTokenizer, hidden_words
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.parameters import abstract, filled
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


# Lines of text, asked for byte by byte.


def lines_with_holes(
  documents: Documents, length: int, batch_size: int, *, seed: int, mask_rate: float = 0.15
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """From a step to batches of random crops with whole words hidden: 'ids' with MASK, and the 'labels' of all bytes."""
  crops = RandomCrops(documents, length, batch_size, seed=seed)
  return lambda start_step: (
    _with_holes(crops.batch(step), np.random.default_rng((seed, 3, step)), mask_rate)
    for step in itertools.count(start_step)
  )


def held_out_lines(documents: Documents, length: int, count: int, mask_rate: float = 0.15) -> dict[str, np.ndarray]:
  """Windows spread evenly over held-out documents: 'bytes', 'labels', and 'ids' with hidden words."""
  windows = Windows(documents, length)
  raw = windows.rows(np.linspace(0, len(windows) - 1, count).astype(np.int64).tolist())
  return {'bytes': raw['bytes']} | _with_holes(raw, np.random.default_rng(0), mask_rate)


def _with_holes(raw: Mapping[str, Any], random: np.random.Generator, mask_rate: float) -> dict[str, np.ndarray]:
  hidden = hidden_words(raw, random, rate=mask_rate, num_queries=1)
  return {'ids': hidden['ids'], 'labels': ByteTokenizer.ids(raw['bytes'], raw['valid'])}


def right_of(
  logits: Float[Array, 'b m e'], labels: Int[Array, 'b m'], *, hidden: Bool[Array, 'b m']
) -> dict[str, Float[Array, '']]:
  """Share of the bytes that are right, among the 'visible' and among the 'hidden' ones."""
  right = jnp.argmax(logits, axis=-1) == labels

  def share(where: Array) -> Array:
    return jnp.sum(right & where, dtype=jnp.float32) / jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)

  return {'visible': share(~hidden), 'hidden': share(hidden)}


# Copying.


def read_while_learning(
  copied: Callable[[nnx.Module, Tokens], Tokens], inputs: Tokens, length: int
) -> Callable[[nnx.Module], dict[str, Any]]:
  """For `evaluate` of `fit`: the 'map' [h, n, m] of the first sequence's read, and the best head's `lookup_mass`."""
  read = jax.jit(capture_attention(copied, names=['encoder']))

  def snapshot(model: nnx.Module) -> dict[str, Any]:
    output, maps = read(model, inputs)
    weights = np.asarray(maps['encoder.cross_attention.0'].weights)
    lookup = lookup_mass(weights, np.asarray(output.time), length)
    return {'lookup': lookup.max(), 'map': weights[0].astype(np.float16)}

  return snapshot


# Images.


def stripes_share(maps: Float[np.ndarray, '*n y x']) -> float:
  """Share of the maps' variance that is a function of the row plus a function of the column: 1 for a tartan.

  A map of independent noise has (y + x - 2) / (y x - 1).
  """
  rows, columns = maps.mean(-1, keepdims=True), maps.mean(-2, keepdims=True)
  stripes = rows + columns - maps.mean((-1, -2), keepdims=True)
  return float(1 - ((maps - stripes) ** 2).mean() / maps.var((-1, -2)).mean())


def likeness(maps: Float[np.ndarray, 'b n m'], values: Float[np.ndarray, 'b m']) -> float:
  """Mean squared correlation of a map with the input's own values: the share of it that is a copy or a negative."""
  values = (values - values.mean(-1, keepdims=True))[:, None]
  maps = maps - maps.mean(-1, keepdims=True)
  norms = (values**2).sum(-1) * (maps**2).sum(-1)
  return float(((maps * values).sum(-1) ** 2 / np.where(norms > 0, norms, 1)).mean())


CHARACTERS: Mapping[str, bytes] = {
  'a space or line break': b' \n',
  'punctuation': b'.,;:!?-\'"[]()*_',
  'a capital': bytes(range(65, 91)),
  'a vowel': b'aeiou',
  'a consonant': bytes(set(range(97, 123)) - set(b'aeiou')),
}


@dataclasses.dataclass(frozen=True)
class Chosen:
  """One head of one latent, and the numbers by which it was chosen."""

  kind: str
  head: int
  latent: int
  position_share: float
  num_places: float
  reason: str


def position_shares(weights: Float[np.ndarray, 'b h n m']) -> Float[np.ndarray, 'h n']:
  """Share of each map's variance over characters that is the same in all sentences, hence due to the place alone.

  A map that is flat everywhere has nothing left to explain: 1.
  """
  whole = weights.var(-1).mean(0)
  return np.where(whole > 0, weights.mean(0).var(-1) / np.where(whole > 0, whole, 1), 1)


def num_places(weights: Float[np.ndarray, '*n m']) -> Float[np.ndarray, '*n']:
  """exp(entropy): over how many inputs a map is spread, from 1 to m."""
  entropy = -np.sum(weights * np.log(np.where(weights > 0, weights, 1)), axis=-1)
  return np.exp(entropy)


def periodicity(weights: Float[np.ndarray, 'b h n m']) -> tuple[Float[np.ndarray, 'h n'], Int[np.ndarray, 'h n']]:
  """The largest share of the mean map's power that one frequency of 2 or more cycles has, and that frequency."""
  power = np.abs(np.fft.rfft(weights.mean(0), axis=-1)) ** 2
  share = power[..., 2:] / np.maximum(power[..., 1:].sum(-1, keepdims=True), 1e-30)
  return share.max(-1), share.argmax(-1) + 2


def preferences(
  weights: Float[np.ndarray, 'b h n m'], text: UInt8[np.ndarray, 'b m']
) -> dict[str, Float[np.ndarray, 'h n']]:
  """How many times the weight a kind of character gets that its places alone would give it: 1 = content is nothing."""
  kinds = {name: np.isin(text, np.frombuffer(characters, np.uint8)) for name, characters in CHARACTERS.items()}
  kinds['the first letter of a word'] = word_starts(text)
  by_place = weights.mean(0)
  return {
    name: np.einsum('bhnm,bm->hn', weights, is_kind) / np.maximum(np.einsum('hnm,bm->hn', by_place, is_kind), 1e-30)
    for name, is_kind in kinds.items()
  }


def word_starts(text: UInt8[np.ndarray, 'b m']) -> Bool[np.ndarray, 'b m']:
  """Letters behind something that is no letter."""
  letter = ((text | 32) >= 97) & ((text | 32) <= 122)
  return letter & ~np.concatenate([np.zeros_like(letter[:, :1]), letter[:, :-1]], axis=1)


def three_kinds(weights: Float[np.ndarray, 'b h n m'], text: UInt8[np.ndarray, 'b m']) -> list[Chosen]:
  """One example each of the paper's three kinds of query (IO, Fig. 7), by a rule and not by eye.

  one place            the largest weight on one place, in the mean over sentences
  a stretch of places  of the maps that their place explains to 80 % and that hold 3 places or more, the most periodic
  place and content    the map that its place explains least
  """
  shares, places = position_shares(weights), num_places(weights).mean(0)
  largest, (periodic, _) = weights.mean(0).max(-1), periodicity(weights)
  spread = np.where((shares >= 0.8) & (places >= 3), periodic, -1)
  picks = {
    'one place': (largest, '{:.0%} of the weight on one place'.format),
    'a stretch of places': (spread, '{:.0%} of the power at one frequency'.format),
    'place and content': (-shares, lambda value: f'its place explains {-value:.0%} only'),
  }
  chosen = []
  for kind, (score, reason) in picks.items():
    head, latent = np.unravel_index(score.argmax(), score.shape)
    chosen.append(
      Chosen(
        kind, int(head), int(latent), float(shares[head, latent]), float(places[head, latent]),
        reason(float(score[head, latent])),
      )
    )  # fmt: skip
  return chosen


def lookup_mass(
  weights: Float[np.ndarray, 'b h n m'], last: Int[np.ndarray, 'b n'], length: int
) -> Float[np.ndarray, 'h']:
  """Attention of each head on the byte to be copied, by latents in the second half: 1 = nowhere else.

  The input at index t is followed by the copy of the one at `length` - 2 - t.
  """
  copies = last >= length // 2 - 1
  source = np.clip(length - 2 - last, 0, weights.shape[-1] - 1)
  mass = np.take_along_axis(weights, source[:, None, :, None], axis=-1)[..., 0]
  return np.where(copies[:, None], mass, 0).sum((0, 2)) / copies.sum()


def uniform_mass(last: Int[np.ndarray, 'b n'], length: int) -> float:
  """What `lookup_mass` is for weights that are equal over all that a latent may see."""
  copies = last >= length // 2 - 1
  return float((copies / (last + 1)).sum() / copies.sum())


def profile(
  weights: Float[np.ndarray, 'b h n m'], offset: Int[np.ndarray, 'n m'], allowed: Bool[np.ndarray, 'n m']
) -> tuple[Int[np.ndarray, 'd'], Float[np.ndarray, 'h d']]:
  """Mean attention of each head at each offset between query and key, over the pairs that the rule allows."""
  offsets = np.unique(offset[allowed])
  mean = weights.mean(0)
  rows = [mean[:, allowed & (offset == value)].mean(-1) for value in offsets]
  return offsets, np.stack(rows, axis=-1)


# Maps beside a known truth.


class OnTruth(NamedTuple):
  """Means in %: the share of a map that lies on the true place, and how often the true place has the largest share."""

  mass: float
  largest: float


def on_truth(
  maps: Float[np.ndarray, 'b t m'], copied: Int[np.ndarray, 'b t'], readable: Bool[np.ndarray, 'b m']
) -> OnTruth:
  """Scores the maps of those outputs that copy one symbol of the source in every example.

  Args:
    maps: how much an output rests on each symbol of the source, in any unit; what is negative counts as 0.
    copied: the place that an output copies, -1 for none.
    readable: False = padding of the source, on which no map is counted.
  """
  scored = (copied >= 0).all(0)
  places = copied[:, scored, None]
  maps = np.where(readable[:, None], np.maximum(maps[:, scored], 0), 0).astype(np.float64)
  total = maps.sum(-1, keepdims=True)
  flat = readable[:, None] / readable.sum(-1)[:, None, None]
  maps = np.where(total > 0, maps / np.where(total > 0, total, 1), flat)
  on_place = np.take_along_axis(maps, places, axis=-1)
  return OnTruth(100 * float(on_place.mean()), 100 * float((maps.argmax(-1) == places[..., 0]).mean()))


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
