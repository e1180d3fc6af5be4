"""Notebook 02: who restores what is lost from a text, the query or the latents; and passages that answer questions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.baselines.text import Score, masked_baselines
from perceiver_lib.data.text import Documents, RandomCrops, Windows
from perceiver_lib.modalities.text import MASK, ByteTokenizer, hidden_words, word_numbers
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.tokens import AnyArray, Tokens
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.metrics import bits_per_byte, correct, evaluate_dataset

Batch = Mapping[str, Any]
View = Callable[[nnx.Module, Batch], Array]
"""(model, batch of `hidden_words`) -> logits [b, o, e] at the places that are asked for."""

Task = Callable[[Mapping[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]
"""(raw 'bytes' and 'valid' [b, l], random) -> what is read, 'ids' [b, m]; the text, 'labels' [b, l]; where it is
'scored', bool [b, l]."""


def nothing_lost(raw: Mapping[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
  """A `Task`: every byte is read, and every byte is scored."""
  labels = ByteTokenizer.ids(raw['bytes'], raw['valid'])
  return {'ids': labels, 'labels': labels, 'scored': np.asarray(raw['valid'])}


def letters_lost(
  raw: Mapping[str, np.ndarray], random: np.random.Generator, *, rate: float = 0.15
) -> dict[str, np.ndarray]:
  """A `Task`: single bytes are hidden, each with the probability `rate`, and scored."""
  whole = nothing_lost(raw, random)
  lost = whole['scored'] & (random.random(whole['labels'].shape) < rate)
  return whole | {'ids': np.where(lost, np.int32(MASK), whole['labels']), 'scored': lost}


def two_copies(
  raw: Mapping[str, np.ndarray],
  random: np.random.Generator,
  *,
  rate: float = 0.375,
  largest_shift: int = 0,
  other_line: bool = False,
) -> dict[str, np.ndarray]:
  """A `Task`: a line twice, m = 2 l + largest_shift; other words are lost in each copy, and those of the first scored.

  Args:
    rate: share of the words that each copy loses, at most one half: no word is lost in both.
    largest_shift: the second copy stands up to so many places further to the right, the gap filled with spaces.
    other_line: the control; the second copy is that of another line.
  """
  labels = nothing_lost({**raw, 'bytes': np.where(raw['bytes'] == ord('\n'), np.uint8(ord(' ')), raw['bytes'])}, random)
  ids = labels['labels']
  number, num_words = word_numbers(ids)
  fate = np.append(random.random(num_words), 1.0)[number]  # the last entry, never lost, is what -1 looks up
  first, second = np.where(fate < rate, MASK, ids), np.where((fate >= rate) & (fate < 2 * rate), MASK, ids)
  if other_line:
    second = np.roll(second, len(ids) // 2, axis=0)
  b, l = ids.shape
  read = np.full((b, 2 * l + largest_shift), ByteTokenizer().encode(' ')[0], np.int32)
  read[:, :l] = first
  shift = random.integers(0, largest_shift + 1, b)
  np.put_along_axis(read, l + shift[:, None] + np.arange(l), second.astype(np.int32), axis=1)
  return {'ids': read, 'labels': ids, 'scored': labels['scored'] & (first == MASK)}


def endless(
  documents: Documents, task: Task, *, length: int, batch_size: int, seed: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """start_step -> batches of a task on random crops; a batch is a function of the seed and its step alone."""
  crops = RandomCrops(documents, length, batch_size, seed=seed)

  def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count(start_step):
      yield task(crops.batch(step), np.random.default_rng((seed, 5, step)))

  return batches


def evenly_spread(documents: Documents, task: Task, *, length: int, num_windows: int, batch_size: int = 64) -> list:
  """Batches of a task on windows spread evenly over held-out documents, the same in every run.

  Raises:
    ValueError: if the documents hold less than one batch.
  """
  return [task(raw, np.random.default_rng((0, 6, step))) for step, raw in enumerate(_spread_windows(
    documents, length, num_windows, batch_size))]  # fmt: skip


def _spread_windows(documents: Documents, length: int, num_windows: int, batch_size: int) -> list:
  windows = Windows(documents, length)
  if min(num_windows, len(windows)) < batch_size:
    raise ValueError(f'Evaluation needs a whole batch of {batch_size} windows; got {min(num_windows, len(windows))}.')
  chosen = np.linspace(0, len(windows) - 1, min(num_windows, len(windows)) // batch_size * batch_size).astype(np.int64)
  return [windows.rows(rows.tolist()) for rows in chosen.reshape(-1, batch_size)]


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
  batches = []
  for number, raw in enumerate(_spread_windows(documents, length, num_windows, batch_size)):
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


NUM_PLACES = 8
"""The last speaker's name is said to stand in one of so many parts of the passage, or not to be in it."""

ANSWERS: Mapping[str, int] = {'place of the last name': NUM_PLACES + 1, 'number of names': 4, 'verse or prose': 2}
"""Answers of each question, in the order of the queries; each has columns of its own among the outputs."""


def exam(
  raw: Mapping[str, np.ndarray], random: np.random.Generator, *, asked: Sequence[str] = tuple(ANSWERS)
) -> dict[str, np.ndarray]:
  """Ids of passages; for each question its answer, and whether it '... counts', which it does not unless `asked`.

  The answers follow from the mark-up of the plays: names of speakers stand between pairs of stars, and lines of verse
  begin with capitals. Of the passages in verse only so many count that each of the two has half of the answers.
  """
  text = raw['bytes']
  b, m = text.shape
  stars = (text[:, :-1] == ord('*')) & (text[:, 1:] == ord('*'))
  num_names = stars.sum(1) // 2
  last = np.where(stars.any(1), m - 2 - stars[:, ::-1].argmax(1), m)
  begins = np.pad(text[:, :-1] == ord('\n'), ((0, 0), (1, 0)))
  capital, small = ((text >= ord(first)) & (text < ord(first) + 26) & begins for first in 'Aa')
  verse = capital.sum(1) > 3 * small.sum(1)
  chance = (~verse).sum() / max(verse.sum(), 1)
  balanced = ~verse | (random.random(b) < chance)
  answers = {
    'place of the last name': np.where(last < m, last * NUM_PLACES // m, NUM_PLACES),
    'number of names': np.minimum(num_names, 3),
    'verse or prose': verse,
  }
  counts = {f'{name} counts': (balanced if name == 'verse or prose' else np.ones(b, bool)) & (name in asked)
            for name in answers}  # fmt: skip
  ids = ByteTokenizer.ids(text, raw['valid'])
  return {'ids': ids, **counts, **{name: answer.astype(np.int32) for name, answer in answers.items()}}


def answer_columns(outputs: Float[Array, 'b questions e']) -> dict[str, Float[Array, 'b answers']]:
  """Logits by question: its own query, its own columns of the outputs."""
  ends = list(itertools.accumulate(ANSWERS.values()))
  return {
    name: outputs[:, number, end - count : end]
    for number, (end, (name, count)) in enumerate(zip(ends, ANSWERS.items(), strict=True))
  }


def most_frequent_answers(train: Sequence[Batch], test: Sequence[Batch]) -> dict[str, float]:
  """Accuracy in % of always giving the most frequent answer of the training passages."""
  scores = {}
  for name in ANSWERS:
    seen, asked = (
      np.concatenate([batch[name][batch[f'{name} counts']] for batch in batches]) for batches in (train, test)
    )
    scores[name] = 100 * float((asked == np.bincount(seen).argmax()).mean())
  return scores
