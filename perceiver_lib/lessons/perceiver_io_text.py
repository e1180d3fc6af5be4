"""Notebook 02: hidden words and who knows them, the query or the latents; and passages that answer three questions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.baselines.text import Score, masked_baselines
from perceiver_lib.data.text import Documents, RandomCrops, Windows
from perceiver_lib.modalities.text import MASK, ByteTokenizer, hidden_words
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.tokens import AnyArray, Tokens
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.metrics import bits_per_byte, correct, evaluate_dataset

Batch = Mapping[str, Any]
View = Callable[[nnx.Module, Batch], Array]
"""(model, batch of `hidden_words`) -> logits [b, o, e] at the places that are asked for."""


def masked_batches(
  documents: Documents, *, length: int, batch_size: int, rate: float, every: int, seed: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """start_step -> batches of random crops with hidden words; a batch is a function of the seed and its step alone.

  Hidden are a share `rate` of the words, and besides one in `every`.
  """
  crops = RandomCrops(documents, length, batch_size, seed=seed)
  # A fifth of a text is whitespace; where more bytes than these are hidden, some are not asked for.
  num_queries = max(8, round(0.9 * (rate + 1 / every) * length))

  def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count(start_step):
      random = np.random.default_rng((seed, 3, step))
      yield hidden_words(crops.batch(step), random, rate=rate, num_queries=num_queries, every=every)

  return batches


def evaluation_set(
  documents: Documents, *, length: int, batch_size: int, rate: float, num_windows: int
) -> list[dict[str, np.ndarray]]:
  """Windows spread evenly over held-out documents, with hidden words that are the same in every run.

  Every hidden byte is asked for. Batches also hold the raw 'bytes', for the baselines.
  """
  windows = Windows(documents, length)
  if min(num_windows, len(windows)) < batch_size:
    raise ValueError(f'Evaluation needs a whole batch of {batch_size} windows; got {min(num_windows, len(windows))}.')
  chosen = np.linspace(0, len(windows) - 1, min(num_windows, len(windows)) // batch_size * batch_size).astype(np.int64)
  batches = []
  for number, rows in enumerate(chosen.reshape(-1, batch_size)):
    raw = windows.rows(rows.tolist())
    everything = hidden_words(raw, np.random.default_rng((0, 4, number)), rate=rate, num_queries=length)
    batches.append(everything | {'bytes': raw['bytes']})
  most = max(int(batch['label_valid'].sum(1).max()) for batch in batches)
  asked = ('places', 'labels', 'label_valid')
  return [{key: value[:, :most] if key in asked else value for key, value in batch.items()} for batch in batches]


def table_scores(train: Documents, batches: Sequence[Batch]) -> dict[str, Score]:
  """Unigram, word position and word bigram on the very bytes that the model is asked for."""
  ids, windows, valid = (np.concatenate([batch[key] for batch in batches]) for key in ('ids', 'bytes', 'valid'))
  return masked_baselines(train.joined(), windows, (ids == MASK) & valid, valid)


def shown(ids: Int[np.ndarray, 'm']) -> str:
  """The text, with _ for every hidden byte."""
  return ByteTokenizer().decode(np.where(ids == MASK, ByteTokenizer().encode('_')[0], ids)).strip()


@dataclasses.dataclass(frozen=True)
class Reading:
  """A `View`: how a Perceiver IO reads a batch, and how it is asked for the hidden bytes.

  Attributes:
    tokens: (ids [b, m], valid [b, m]) -> raw input tokens.
    queries: (input tokens, places [b, o]) -> raw queries.
  """

  tokens: Callable[[AnyArray, AnyArray], Tokens]
  queries: Callable[[Tokens, AnyArray], Tokens]

  def __call__(self, model: PerceiverIO, batch: Batch) -> Float[Array, 'b o e']:
    tokens = self.tokens(batch['ids'], batch['valid'])
    return model(tokens, self.queries(tokens, batch['places']))

  def with_foreign_latents(self, model: PerceiverIO, batch: Batch) -> Float[Array, 'b o e']:
    """The same queries read the latents of the batch's next text: what is left, they carry along themselves."""
    tokens = self.tokens(batch['ids'], batch['valid'])
    own = model.encode(tokens)
    other = dataclasses.replace(own, values=jnp.roll(own.values, 1, axis=0))
    return model.decode(other, self.queries(tokens, batch['places']))


def masked_score(model: nnx.Module, view: View, batches: Sequence[Batch]) -> Score:
  """Accuracy (a share) and bits per byte at the hidden bytes of an `evaluation_set`."""
  asked = [{key: value for key, value in batch.items() if key != 'bytes'} for batch in batches]
  found = evaluate_dataset(model, _masked_metrics(view), asked)
  return Score(found['accuracy'], bits_per_byte(found['nats']))


@functools.cache
def _masked_metrics(view: View) -> Callable:
  def metrics(model: nnx.Module, batch: Batch) -> dict[str, tuple[Array, Array]]:
    logits, labels, valid = view(model, batch), batch['labels'], batch['label_valid']
    return {
      'accuracy': (correct(logits, labels), valid),
      'nats': (cross_entropy(logits, labels, valid=valid, reduction='none'), valid),
    }

  return metrics


def fill_in(
  model: PerceiverIO, view: View, holes: Mapping[str, str], *, length: int
) -> list[tuple[str, Float[np.ndarray, 'o']]]:
  """What the model writes for the bytes of a hole, the last occurrence of some words in a text, and how sure it is.

  Args:
    holes: text -> the words in it that are hidden.
    length: of the model's windows, in bytes.

  Returns:
    For every text the filled hole, and the probability of each of its bytes.

  Raises:
    ValueError: if a text does not hold its words, or is longer than the windows.
  """
  starts = {text: text.encode().rfind(words.encode()) for text, words in holes.items()}
  for text, words in holes.items():
    if not words or starts[text] < 0:
      raise ValueError(f'The text must hold the hidden words, {words!r}; got {text!r}.')
  ids, valid = ByteTokenizer().batch(list(holes), length=length)
  sizes = [len(words.encode()) for words in holes.values()]
  places = np.minimum(np.array(list(starts.values()))[:, None] + np.arange(max(sizes)), length - 1).astype(np.int32)
  for row, size in enumerate(sizes):
    ids[row, places[row, :size]] = MASK
  batch = {'ids': ids, 'valid': valid, 'places': places}
  probabilities = np.asarray(jax.jit(lambda model, batch: jax.nn.softmax(view(model, batch)))(model, batch))
  rows = [row[:size] for row, size in zip(probabilities, sizes, strict=True)]
  return [(ByteTokenizer().decode(row.argmax(-1)), row.max(-1)) for row in rows]


NUM_PLACES = 8
"""The speaker's place is answered as one of so many parts of the passage, or as 'not in it'."""

ANSWERS: Mapping[str, int] = {'play': 34, 'speaker': NUM_PLACES + 1, 'verse': 2}
"""Answers of each question, in the order of the queries; each has columns of its own among the outputs."""


def exam(passages: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Ids of passages (`data.shakespeare.load_passages`); for each question its answer, and whether it '... counts'."""
  everywhere = np.ones(len(passages['bytes']), bool)
  length, position = passages['bytes'].shape[1], passages['speaker_position']
  place = np.where(position < length, position * NUM_PLACES // length, NUM_PLACES).astype(np.int32)
  return {
    'ids': ByteTokenizer.ids(passages['bytes']),
    'play': passages['play'],
    'play counts': everywhere,
    'speaker': place,
    'speaker counts': everywhere,
    'verse': (passages['verse_share'] >= 0.5).astype(np.int32),
    'verse counts': passages['num_known_lines'] > 0,
  }


def asking_only(arrays: Mapping[str, np.ndarray], questions: Sequence[str]) -> dict[str, np.ndarray]:
  """The same exam, in which no other question counts."""
  others = {f'{name} counts': np.zeros(len(arrays['ids']), bool) for name in ANSWERS if name not in questions}
  return {**arrays, **others}


def spread(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
  """So many rows from evenly spread places of a split, which lies in the order of the plays."""
  rows = np.linspace(0, len(arrays['ids']) - 1, min(count, len(arrays['ids']))).astype(np.int64)
  return {key: value[rows] for key, value in arrays.items()}


def answer_columns(outputs: Float[Array, 'b questions e']) -> dict[str, Float[Array, 'b answers']]:
  """Logits by question: its own query, its own columns of the outputs."""
  ends = list(itertools.accumulate(ANSWERS.values()))
  return {
    name: outputs[:, number, end - count : end]
    for number, (end, (name, count)) in enumerate(zip(ends, ANSWERS.items(), strict=True))
  }


def majority_scores(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Accuracy in % of always giving the most frequent answer of the training passages."""
  scores = {}
  for name in ANSWERS:
    (seen, answers) = (arrays[name][arrays[f'{name} counts']] for arrays in (train, test))
    scores[name] = 100 * float((answers == np.bincount(seen).argmax()).mean())
  return scores
