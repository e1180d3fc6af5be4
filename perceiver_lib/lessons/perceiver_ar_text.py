"""Notebook 06: what a byte model makes of its context, byte by byte and name by name, and how fast it writes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.data.text import Documents, RandomCrops
from perceiver_lib.experiments.measuring import in_turn
from perceiver_lib.generation.stream import Sampler, generate
from perceiver_lib.modalities.text import NUM_SPECIAL, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.modalities.text_context import with_previous
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.sequences import at_latents, keep_last, next_tokens

BYTES_ONLY = np.arange(VOCAB_SIZE)[None] >= NUM_SPECIAL
"""`allowed` of `generation.stream`: a text holds no special token."""
NUM_SCORED = 16
"""Last bytes of a row that are scored where the visible context counts: all of them see nearly as much."""
_BATCH = 16
_NAME = re.compile(rb'[A-Za-z_]{6,16}')


@functools.partial(nnx.jit, static_argnums=2)
def outputs(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Tokens:
  """The model's outputs, compiled."""
  return model(inputs, num_latents=num_latents)


@functools.partial(nnx.jit, static_argnums=(3, 4))
def _bits(
  model: PerceiverAR, rows: UInt8[Array, 'b m'], context: Int[Array, ''], num_latents: int, num_ids: int
) -> Float[Array, 'b n']:
  examples = keep_last(next_tokens(rows.astype(jnp.int32) + NUM_SPECIAL), context)
  inputs = examples.inputs if num_ids == 1 else with_previous(examples.inputs, num_ids)
  logits = model(inputs, num_latents=num_latents)
  return cross_entropy(logits.values, at_latents(examples.targets, logits), reduction='none') / np.log(2)


def bits_of_each_byte(
  model: PerceiverAR, rows: UInt8[np.ndarray, 'b m'], *, num_latents: int, num_ids: int = 1, context: int | None = None
) -> Float[np.ndarray, 'b n']:
  """-log2 p of the last `num_latents` bytes of each row, each given all before it or the last `context` inputs.

  Where the context has fewer inputs than there are latents, the bits of the first ones mean nothing.

  Args:
    num_ids: ids that a token carries (`modalities.text_context`).
  """
  parts = []
  for first in range(0, len(rows), _BATCH):
    part = rows[first : first + _BATCH]
    filled_up = np.resize(part, (_BATCH, rows.shape[1]))
    bits = _bits(model, filled_up, jnp.int32(context or rows.shape[1]), num_latents, num_ids)
    parts.append(np.asarray(bits)[: len(part)])
  return np.concatenate(parts)


def whole_rows(documents: Documents, length: int, count: int, *, seed: int) -> UInt8[np.ndarray, 'b m']:
  """At most `count` rows of `length` bytes from random places, without those of documents that are shorter."""
  crops = RandomCrops(documents, length, count, seed=seed).batch(0)
  return crops['bytes'][crops['valid'].all(axis=1)]


def bits_by_context(
  model: PerceiverAR, rows: UInt8[np.ndarray, 'b m'], contexts: Sequence[int], **settings: int
) -> tuple[dict[int, float], dict[int, float]]:
  """Mean bits of the last `NUM_SCORED` bytes of rows by how many bytes of the row itself stand before each of them.

  Args:
    settings: of `bits_of_each_byte`.

  Returns:
    With nothing before those, and with the bytes of another row before them: context -> bits per byte.
  """
  place, other, last = np.arange(rows.shape[1]), np.roll(rows, 1, axis=0), rows.shape[1] - 1

  def mean(rows: np.ndarray, context: int) -> float:
    return float(bits_of_each_byte(model, rows, context=context, **settings)[:, -NUM_SCORED:].mean())

  own = {context: min(context + NUM_SCORED - 1, last) for context in contexts}
  cut = {context: mean(rows, seen) for context, seen in own.items()}
  foreign = {context: mean(np.where(place < last - seen, other, rows), last) for context, seen in own.items()}
  return cut, foreign


class Name(NamedTuple):
  """A word that the training text lacks, and the text up to its first three ends `[3, m]`."""

  word: bytes
  rows: UInt8[np.ndarray, '3 m']


def new_names(documents: Documents, train: bytes, length: int) -> list[Name]:
  """Words of 6 to 16 letters that no training text has and that stand three times within `length` bytes.

  No table of the training text can know them; the first time is the first in the document.
  """
  known = set(_NAME.findall(train))
  names = []
  for item in (documents[index] for index in range(len(documents))):
    places: dict[bytes, list[int]] = {}
    for match in re.finditer(rb'\w+', item['text']):
      if _NAME.fullmatch(match.group()) and match.group() not in known:
        places.setdefault(match.group(), []).append(match.end())
    for word, ends in places.items():
      if len(ends) >= 3 and ends[0] >= length and ends[2] - ends[0] + len(word) < length:
        rows = [np.frombuffer(item['text'], np.uint8)[end - length : end] for end in ends[:3]]
        names.append(Name(word, np.stack(rows)))
  return names


def bits_by_occurrence(model: PerceiverAR, names: Sequence[Name], *, seed: int, **settings: int) -> Mapping[str, float]:
  """Mean bits of new names at their first three times, and the third time after other letters stood in the first two.

  Args:
    settings: of `bits_of_each_byte`.
  """
  random = np.random.default_rng(seed)

  def replaced(name: Name) -> UInt8[np.ndarray, 'm']:
    before, letters = name.rows[2][: -len(name.word)].tobytes(), random.integers(97, 123, len(name.word), np.uint8)
    other = re.sub(rb'\b%b\b' % name.word, letters.tobytes(), before)
    return np.frombuffer(other + name.word, np.uint8)

  kinds = {kind: [name.rows[index] for name in names] for index, kind in enumerate(('first', 'second', 'third'))}
  kinds['third, the first two replaced'] = [replaced(name) for name in names]
  found = {}
  for kind, rows in kinds.items():
    bits = bits_of_each_byte(model, np.stack(rows), **settings)
    found[kind] = float(np.mean([row[-len(name.word) :].sum() for row, name in zip(bits, names, strict=True)]))
  return found


def milliseconds(
  model: PerceiverAR, rows: UInt8[np.ndarray, 'b m'], numbers: Sequence[int], *, num_ids: int
) -> dict[int, float]:
  """Median time of a call on these rows, by number of latents; the calls take turns."""
  inputs = with_previous(Tokens(values=jnp.asarray(ByteTokenizer.ids(rows))), num_ids)
  seconds = in_turn({number: functools.partial(outputs, model, inputs, number) for number in numbers}, rounds=5)
  return {number: 1e3 * float(np.median(found)) for number, found in seconds.items()}


def generation_speed(
  model: PerceiverAR, prompt: Int[np.ndarray, '1 m'], *, num_latents: int, num_ids: int, num_tokens: int
) -> dict[str, float]:
  """Tokens per second, the prompt's reading included: {'cached', 'recomputed'}.

  Recomputed is the same loop with a window that has no room: every token reads its whole context, as long as the
  prompt, anew.
  """

  def call(num_start_latents: int) -> np.ndarray:
    window = LatentWindow(context_length=prompt.shape[1], num_latents=num_latents, num_start_latents=num_start_latents)
    settings = {'sampler': Sampler(temperature=0.8), 'allowed': BYTES_ONLY, 'num_ids': num_ids}
    return generate(model, prompt, window=window, num_tokens=num_tokens, **settings)

  starts = {'cached': num_latents // 2, 'recomputed': num_latents}
  seconds = in_turn({name: functools.partial(call, start) for name, start in starts.items()}, rounds=3)
  return {name: num_tokens / float(np.median(found)) for name, found in seconds.items()}
