"""How notebook 02 trains: a Perceiver IO that fills in hidden words of Shakespeare, and what it is compared with.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook.
"""

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
from jaxtyping import Array, Float

from perceiver_lib.baselines.text import Score, masked_baselines
from perceiver_lib.data.text import Documents, RandomCrops, Windows
from perceiver_lib.flops import count_flops
from perceiver_lib.lessons.text_models import TextRecipe
from perceiver_lib.modalities.text import MASK, ByteTokenizer, mask_words, word_numbers
from perceiver_lib.modalities.text_context import holes, neighbourhoods, tokens_at
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.models.transformer import Transformer
from perceiver_lib.queries import InputQueries, LearnedQueries
from perceiver_lib.tokens import AnyArray, Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.metrics import bits_per_byte, correct, evaluate_dataset
from perceiver_lib.training.optimizers import adamw_warmup_cosine

Batch = Mapping[str, Any]


def hidden_words(
  batch: Batch, random: np.random.Generator, *, rate: float, num_queries: int, every: int | None = None
) -> dict[str, np.ndarray]:
  """Hides whole words of raw bytes, and lists the hidden places: only those are asked for.

  Args:
    rate: share of the words, each chosen on its own.
    num_queries: places that are listed.
    every: hide besides one word in so many, counted from a random one.

  Returns:
    'ids' [b, m] with MASK, 'valid' [b, m], and for every query [b, o] its 'places', 'labels' and 'label_valid'. Where
    more than `num_queries` bytes of a row are hidden, some of them, drawn at random, are asked for.
  """
  ids, labels, hidden = mask_words(ByteTokenizer.ids(batch['bytes'], batch['valid']), random, rate=rate)
  if every is not None:
    number = word_numbers(labels)[0]
    hidden = hidden | ((number >= 0) & (number % every == random.integers(every, size=(len(labels), 1))))
    ids = np.where(hidden, np.int32(MASK), labels)
  order = np.argsort(np.where(hidden, random.random(ids.shape), 2.0), axis=1)
  places = order[:, :num_queries].astype(np.int32)
  return {
    'ids': ids,
    'valid': np.asarray(batch['valid']),
    'places': places,
    'labels': np.take_along_axis(labels, places, axis=1),
    'label_valid': np.take_along_axis(hidden, places, axis=1),
  }


def masked_batches(
  documents: Documents, *, length: int, batch_size: int, rate: float, seed: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """start_step -> batches of random crops with hidden words; a batch is a function of the seed and its step alone.

  Hidden are a share `rate` of the words, and every third.
  """
  crops = RandomCrops(documents, length, batch_size, seed=seed)
  # A fifth of a text is whitespace; where more bytes than these are hidden, some are not asked for.
  num_queries = max(8, round(0.9 * (rate + 1 / 3) * length))

  def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count(start_step):
      random = np.random.default_rng((seed, 3, step))
      yield hidden_words(crops.batch(step), random, rate=rate, num_queries=num_queries, every=3)

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


def table_baselines(train: Documents, batches: Sequence[Batch]) -> dict[str, Score]:
  """Unigram, word position and word bigram on the very bytes that the model is asked for."""
  ids, windows, valid = (np.concatenate([batch[key] for batch in batches]) for key in ('ids', 'bytes', 'valid'))
  return masked_baselines(train.joined(), windows, (ids == MASK) & valid, valid)


@dataclasses.dataclass(frozen=True)
class ReadText:
  """Runs any of the models on a batch of `hidden_words`: logits [b, o, e] at the hidden places."""

  recipe: TextRecipe
  radius: int
  span: int

  @classmethod
  def of(cls, recipe: TextRecipe) -> ReadText:
    return cls(recipe, recipe.radius, recipe.length)

  @classmethod
  def long(cls, recipe: TextRecipe) -> ReadText:
    """For `long_models`."""
    return cls(recipe, recipe.long_radius, recipe.long_length)

  def tokens(self, ids: AnyArray, valid: AnyArray) -> Tokens:
    return neighbourhoods(jnp.asarray(ids), radius=self.radius, span=self.span, valid=jnp.asarray(valid))

  def queries(self, model: PerceiverIO, tokens: Tokens, places: AnyArray) -> Tokens:
    """What the model's decoder wants to know of the bytes at `places` [b, o]."""
    places, kind = jnp.asarray(places), model.config.decoder.queries
    if isinstance(kind, LearnedQueries):
      return Tokens(values=places)
    if isinstance(kind, InputQueries):
      return tokens_at(tokens, places)
    ids = tokens.values[:, :, self.radius]
    radius, num_buckets = self.recipe.query_radius, self.recipe.num_buckets
    return holes(ids, places, radius=radius, span=self.span, num_buckets=num_buckets)

  def __call__(self, model: PerceiverIO | Transformer, batch: Batch) -> Float[Array, 'b o e']:
    tokens = self.tokens(batch['ids'], batch['valid'])
    if isinstance(model, Transformer):
      return jnp.take_along_axis(model(tokens), jnp.asarray(batch['places'])[:, :, None], axis=1)
    return model(tokens, self.queries(model, tokens, batch['places']))


@functools.cache
def masked_loss(read: ReadText) -> Callable:
  """Cross-entropy in nats, and accuracy, over the hidden bytes that are asked for."""

  def loss_fn(model: nnx.Module, batch: Batch, rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
    logits, valid = read(model, batch), jnp.asarray(batch['label_valid'])
    labels = jnp.asarray(batch['labels'])
    accuracy = jnp.where(valid, correct(logits, labels), 0.0).sum() / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)
    return cross_entropy(logits, labels, valid=valid), {'accuracy': accuracy}

  return loss_fn


@functools.cache
def _masked_metrics(read: ReadText, latents: str) -> Callable:
  def metric_fn(model: nnx.Module, batch: Batch) -> dict[str, tuple[Array, Array]]:
    if latents == 'own':
      logits = read(model, batch)
    else:
      tokens = read.tokens(batch['ids'], batch['valid'])
      own = model.encode(tokens)
      other = dataclasses.replace(own, values=jnp.roll(own.values, 1, axis=0))
      logits = model.decode(other, read.queries(model, tokens, batch['places']))
    labels, valid = jnp.asarray(batch['labels']), jnp.asarray(batch['label_valid'])
    return {
      'accuracy': (correct(logits, labels), valid),
      'nats': (cross_entropy(logits, labels, valid=valid, reduction='none'), valid),
    }

  return metric_fn


def masked_score(model: nnx.Module, read: ReadText, batches: Sequence[Batch], *, latents: str = 'own') -> Score:
  """Accuracy (a share) and bits a byte at the hidden bytes.

  Args:
    latents: 'own', or 'of another text': what is left when the queries read the latents of the batch's next text.
  """
  if latents not in ('own', 'of another text'):
    raise ValueError(f"latents must be 'own' or 'of another text'; got {latents!r}.")
  asked = [{key: value for key, value in batch.items() if key != 'bytes'} for batch in batches]
  found = evaluate_dataset(model, _masked_metrics(read, latents), asked)
  return Score(found['accuracy'], bits_per_byte(found['nats']))


def train_masked(
  model: nnx.Module,
  read: ReadText,
  train: Documents,
  validation: Sequence[Batch],
  *,
  recipe: TextRecipe,
  num_steps: int,
  seed: int,
  length: int | None = None,
  batch_size: int | None = None,
  evaluations: int = 1,
  **fit_settings: Any,
) -> FitResult:
  """AdamW with warm-up and a cosine, and a moving average of the weights; validation `evaluations` times."""

  def evaluate(trained: nnx.Module) -> dict[str, float]:
    score = masked_score(trained, read, validation)
    return {'validation_accuracy': 100 * score.accuracy, 'validation_bits_per_byte': score.bits_per_byte}

  return fit(
    model,
    masked_loss(read),
    masked_batches(
      train,
      length=length or recipe.length,
      batch_size=batch_size or recipe.batch_size,
      rate=recipe.train_mask_rate,
      seed=seed,
    ),
    optimizer=adamw_warmup_cosine(recipe.learning_rate, num_steps, warmup_steps=min(100, num_steps // 8)),
    num_steps=num_steps,
    seed=seed,
    evaluate=evaluate,
    evaluations=evaluations,
    ema_decay=0.995,
    **fit_settings,
  )


def step_flops(model: nnx.Module, read: ReadText, batch: Batch) -> int:
  """Floating-point operations of one loss and its gradient."""
  return gradient_flops(model, masked_loss(read), batch)


def gradient_flops(model: nnx.Module, loss: Callable, batch: Batch) -> int:
  graphdef, state = nnx.split(model)
  return count_flops(
    lambda state, batch: jax.grad(lambda s: loss(nnx.merge(graphdef, s), batch, None)[0])(state), state, batch
  )


@functools.cache
def _probabilities(read: ReadText) -> Callable:
  return jax.jit(lambda model, batch: jax.nn.softmax(read(model, batch)))


def fill_in(model: PerceiverIO, read: ReadText, text: str, hidden: str) -> tuple[str, Float[np.ndarray, 'o']]:
  """The text with the bytes of `hidden`, at its last occurrence, as the model fills them in, and how sure it is.

  Raises:
    ValueError: if the text does not hold `hidden`, or is longer than the model's windows.
  """
  start = text.encode().rfind(hidden.encode())
  if not hidden or start < 0:
    raise ValueError(f'The text must hold the hidden part, {hidden!r}; got {text!r}.')
  ids, valid = ByteTokenizer().batch([text], length=read.span)
  places = np.arange(start, start + len(hidden.encode()), dtype=np.int32)[None]
  ids[0, places[0]] = MASK
  probabilities = np.asarray(_probabilities(read)(model, {'ids': ids, 'valid': valid, 'places': places})[0])
  best = probabilities.argmax(-1)
  ids[0, places[0]] = best
  return ByteTokenizer().decode(ids[0][valid[0]]), probabilities[np.arange(len(best)), best]
