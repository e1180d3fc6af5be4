"""Several questions about a passage, each a learned query of one encoder: Perceiver IO's multitask experiment, small.

The paper (2107.14795, section 4.1, Tab. 2) asks eight tasks of GLUE at once, with a query a task, and compares with one
fine-tuning a task. Here a passage of Shakespeare is asked for its play, for the place at which the name of whoever
speaks last begins, and for whether it is mostly verse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.data.base import DataSet
from perceiver_lib.data.loading import training_batches
from perceiver_lib.lessons import masked_text
from perceiver_lib.lessons.masked_text import ReadText
from perceiver_lib.lessons.text_models import TextRecipe, text_decoder, text_perceiver
from perceiver_lib.modalities.text import ByteTokenizer
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.queries import LearnedQueries
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.metrics import correct, evaluate_dataset
from perceiver_lib.training.optimizers import adamw_warmup_cosine

NUM_PLACES = 8
"""The speaker's position is answered as one of so many parts of the passage, or as 'not in it'."""

ANSWERS: Mapping[str, int] = {'play': 34, 'speaker': NUM_PLACES + 1, 'verse': 2}
"""Answers of each question, in the order of the queries; each has columns of its own among the outputs."""


def question_perceiver(recipe: TextRecipe, **changes: Any) -> PerceiverIOConfig:
  """The encoder of the masked language model under a decoder with one learned query a question."""
  decoder = dataclasses.replace(
    text_decoder(recipe),
    queries=LearnedQueries(num_queries=len(ANSWERS), num_channels=recipe.num_query_channels),
    num_outputs=sum(ANSWERS.values()),
  )
  return text_perceiver(recipe, decoder=decoder, **changes)


def passage_batch(batch: Mapping[str, np.ndarray], asked: Sequence[str]) -> dict[str, np.ndarray]:
  """Ids, the true answers [b, questions], and which of them are scored."""
  length = batch['bytes'].shape[1]
  place = np.where(
    batch['speaker_position'] < length, batch['speaker_position'] * NUM_PLACES // length, NUM_PLACES
  ).astype(np.int32)
  answers = {'play': batch['play'], 'speaker': place, 'verse': (batch['verse_share'] >= 0.5).astype(np.int32)}
  known = {'verse': batch['num_known_lines'] > 0}
  everywhere = np.ones(len(batch['bytes']), bool)
  return {
    'ids': ByteTokenizer.ids(batch['bytes']),
    'answers': np.stack([answers[name] for name in ANSWERS], axis=1),
    'scored': np.stack([known.get(name, everywhere) & (name in asked) for name in ANSWERS], axis=1),
  }


def answer_logits(read: ReadText, model: PerceiverIO, ids: Array | np.ndarray) -> dict[str, Float[Array, 'b e']]:
  """Every question of every passage: its own query, its own columns of the outputs."""
  ids = jnp.asarray(ids)
  outputs = model(read.tokens(ids, jnp.ones(ids.shape, bool)))
  logits, first = {}, 0
  for number, (name, count) in enumerate(ANSWERS.items()):
    logits[name] = outputs[:, number, first : first + count]
    first += count
  return logits


@dataclasses.dataclass(frozen=True)
class Questions:
  """Loss and metrics of all questions; a question that is not scored adds nothing to either."""

  read: ReadText

  def loss(self, model: PerceiverIO, batch: Mapping[str, Any], rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
    losses = {
      name: cross_entropy(
        logits, jnp.asarray(batch['answers'])[:, number], valid=jnp.asarray(batch['scored'])[:, number]
      )
      for number, (name, logits) in enumerate(answer_logits(self.read, model, batch['ids']).items())
    }
    return sum(losses.values()), losses

  def metrics(self, model: PerceiverIO, batch: Mapping[str, Any]) -> dict[str, tuple[Array, Array]]:
    return {
      name: (correct(logits, jnp.asarray(batch['answers'])[:, number]), jnp.asarray(batch['scored'])[:, number])
      for number, (name, logits) in enumerate(answer_logits(self.read, model, batch['ids']).items())
    }


def train_questions(
  model: PerceiverIO, passages: DataSet, *, recipe: TextRecipe, asked: Sequence[str], seed: int, **fit_settings: Any
) -> FitResult:
  """Fine-tunes everything on some of the questions; whichever are asked, the compiled step is the same."""

  def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
    stream = training_batches(passages.train, recipe.question_batch_size, seed=seed, start_step=start_step)
    return (passage_batch(batch, asked) for batch in stream)

  return fit(
    model,
    Questions(ReadText.of(recipe)).loss,
    batches,
    optimizer=adamw_warmup_cosine(3e-3, recipe.question_steps, warmup_steps=min(20, recipe.question_steps // 4)),
    num_steps=recipe.question_steps,
    seed=seed,
    ema_decay=0.99,
    **fit_settings,
  )


def step_flops(model: PerceiverIO, passages: Mapping[str, np.ndarray], recipe: TextRecipe) -> int:
  """Floating-point operations of one loss and its gradient."""
  batch = passage_batch({key: value[: recipe.question_batch_size] for key, value in passages.items()}, tuple(ANSWERS))
  return masked_text.gradient_flops(model, Questions(ReadText.of(recipe)).loss, batch)


def spread(passages: Mapping[str, np.ndarray], *, num_batches: int, batch_size: int) -> list[dict[str, np.ndarray]]:
  """Batches of passages from evenly spread places of a split, which lies in the order of the plays."""
  count = len(passages['bytes'])
  rows = np.linspace(0, count - 1, min(num_batches, max(1, count // batch_size)) * batch_size).astype(np.int64)
  return [{key: value[chosen] for key, value in passages.items()} for chosen in rows.reshape(-1, batch_size)]


def question_scores(
  model: PerceiverIO, passages: Sequence[Mapping[str, np.ndarray]], recipe: TextRecipe
) -> dict[str, float]:
  """Accuracy in % on each question."""
  questions = Questions(ReadText.of(recipe))
  found = evaluate_dataset(model, questions.metrics, [passage_batch(batch, tuple(ANSWERS)) for batch in passages])
  return {name: 100 * value for name, value in found.items()}


def majority_scores(train: Mapping[str, np.ndarray], passages: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
  """Accuracy in % of always giving the most frequent answer of the training passages."""
  seen = passage_batch(train, tuple(ANSWERS))
  test = [passage_batch(batch, tuple(ANSWERS)) for batch in passages]
  scores = {}
  for number, name in enumerate(ANSWERS):
    answers, scored = (np.concatenate([batch[key][:, number] for batch in test]) for key in ('answers', 'scored'))
    common = np.bincount(seen['answers'][:, number][seen['scored'][:, number]]).argmax()
    scores[name] = 100 * float((answers[scored] == common).mean())
  return scores
