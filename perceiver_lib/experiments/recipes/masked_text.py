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

from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data.text import Documents, RandomCrops, Windows
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.flops import count_flops
from perceiver_lib.losses import cross_entropy
from perceiver_lib.metrics import bits_per_byte, correct, evaluate_dataset
from perceiver_lib.modalities.text import MASK, VOCAB_SIZE, ByteTokenizer, mask_words
from perceiver_lib.modalities.text_neighbourhoods import NeighbourhoodAdapterConfig, neighbourhoods, tokens_at
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.optimizers import adamw_warmup_cosine
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import InputQueries, LearnedQueries
from perceiver_lib.text_baselines import Score, masked_baselines
from perceiver_lib.tokens import Tokens
from perceiver_lib.training import FitResult, fit

Batch = Mapping[str, Any]
AnyArray = Array | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe:
  """Settings of one profile, chosen on the validation plays.

  Attributes:
    train_steps: of the main training; comparison_steps of each short one; question_steps of the questions' trainings.
    length: bytes of a window.
    radius, num_byte_channels, num_channels: of inputs and queries, see `NeighbourhoodAdapterConfig`.
    num_latents, num_latent_channels, num_layers: of the main model.
    mask_rate: share of the words that are hidden when scored, as in the paper; train_mask_rate while training, where a
      read costs more than an answer.
    shapes: (latents, channels) that cost about the same, for a short comparison.
    long_length, long_batch_size, long_steps: of the comparison with a Transformer, its depth, the latents and depth of
      the Perceiver IO beside it, and the validation windows that score both.
    num_test_windows: of the held-out text that is scored.
  """

  train_steps: int
  comparison_steps: int
  question_steps: int
  long_steps: int
  shapes: tuple[tuple[int, int], ...]
  length: int = 256
  batch_size: int = 8
  radius: int = 12
  num_byte_channels: int = 16
  num_channels: int = 128
  num_latents: int = 48
  num_latent_channels: int = 128
  num_layers: int = 2
  num_heads: int = 4
  mask_rate: float = 0.15
  train_mask_rate: float = 0.3
  learning_rate: float = 3e-3
  long_length: int = 1024
  long_batch_size: int = 2
  long_transformer_layers: int = 2
  long_latents: int = 256
  long_layers: int = 6
  num_long_windows: int = 32
  num_test_windows: int = 512


RECIPES = {
  'smoke': TextRecipe(
    train_steps=4, comparison_steps=2, question_steps=2, long_steps=2, shapes=((4, 16), (8, 8)), length=64,
    batch_size=4, radius=3, num_byte_channels=4, num_channels=16, num_latents=4, num_latent_channels=16, num_layers=1,
    long_batch_size=1, num_long_windows=2, num_test_windows=64,
  ),
  'demo': TextRecipe(
    train_steps=1_000, comparison_steps=80, question_steps=60, long_steps=16, shapes=((16, 256), (48, 128), (64, 104))
  ),
  'full': TextRecipe(
    train_steps=60_000, comparison_steps=10_000, question_steps=3_000, long_steps=10_000,
    shapes=((64, 576), (128, 384), (256, 256)), length=512, batch_size=128, num_byte_channels=32, num_channels=384,
    num_latents=128, num_latent_channels=384, num_layers=8, num_heads=8, learning_rate=1e-3, long_length=2_048,
    long_batch_size=64, num_long_windows=64, num_test_windows=2_000,
  ),
}  # fmt: skip


def text_adapter(recipe: TextRecipe, **changes: Any) -> NeighbourhoodAdapterConfig:
  settings = {
    'radius': recipe.radius,
    'num_byte_channels': recipe.num_byte_channels,
    'num_channels': recipe.num_channels,
    'position': FourierFeatures(num_bands=16, max_resolution=(32,)),
  }
  return NeighbourhoodAdapterConfig(**(settings | changes))


def text_perceiver(recipe: TextRecipe, **changes: Any) -> PerceiverIOConfig:
  """The main model: one read, queries made of input features. `changes` replace fields of its config."""
  layer = LayerConfig(num_heads=recipe.num_heads, qk_channels=recipe.num_channels)
  settings = {
    'input_adapter': text_adapter(recipe),
    'num_latents': recipe.num_latents,
    'num_latent_channels': recipe.num_latent_channels,
    'num_self_attends_per_block': recipe.num_layers,
    'cross_attend': layer,
    'self_attend': LayerConfig(num_heads=recipe.num_heads),
    # Zeros: the first guess is uniform, as a model that has read nothing should guess.
    'decoder': DecoderConfig(
      queries=InputQueries(),
      num_outputs=VOCAB_SIZE,
      output='zeros',
      cross_attend=dataclasses.replace(layer, widening_factor=4),
    ),
  }
  return PerceiverIOConfig(**(settings | changes))


def long_models(recipe: TextRecipe) -> dict[str, PerceiverIOConfig | TransformerConfig]:
  """A byte Transformer, and a Perceiver IO that costs the same a step, over texts of `long_length` bytes.

  Both get the same inputs. As in the paper (Tab. 1: 6 layers over 2,048 bytes or 26 over 256 latents), what is saved on
  the width of attention buys depth.
  """
  narrow = text_adapter(recipe, num_channels=recipe.num_channels // 2)
  layer = LayerConfig(num_heads=recipe.num_heads)
  decoder = dataclasses.replace(
    text_perceiver(recipe).decoder, cross_attend=dataclasses.replace(layer, widening_factor=4)
  )
  return {
    'Transformer': TransformerConfig(
      input_adapter=narrow,
      num_layers=recipe.long_transformer_layers,
      self_attend=dataclasses.replace(layer, widening_factor=4),
      num_outputs=VOCAB_SIZE,
    ),
    'Perceiver IO': text_perceiver(
      recipe,
      input_adapter=narrow,
      num_latents=recipe.long_latents,
      num_self_attends_per_block=recipe.long_layers,
      cross_attend=layer,
      decoder=decoder,
    ),
  }


def asked_by_position(recipe: TextRecipe) -> DecoderConfig:
  """The decoder of the paper's text models: a learned query for every place, which knows nothing of the text."""
  decoder = text_perceiver(recipe).decoder
  queries = LearnedQueries(num_queries=recipe.length, num_channels=recipe.num_channels)
  return dataclasses.replace(decoder, queries=queries)


def hidden_words(batch: Batch, random: np.random.Generator, *, rate: float, num_queries: int) -> dict[str, np.ndarray]:
  """Hides whole words of raw bytes, and lists the hidden places: only those are asked for.

  Returns:
    'ids' [b, m] with MASK, 'valid' [b, m], and for every query [b, o] its 'places', 'labels' and 'label_valid'. Where
    more than `num_queries` bytes of a row are hidden, some of them, drawn at random, are asked for.
  """
  masked = mask_words(ByteTokenizer.ids(batch['bytes'], batch['valid']), random, rate=rate)
  order = np.argsort(np.where(masked.label_mask, random.random(masked.ids.shape), 2.0), axis=1)
  places = order[:, :num_queries].astype(np.int32)
  return {
    'ids': masked.ids,
    'valid': np.asarray(batch['valid']),
    'places': places,
    'labels': np.take_along_axis(masked.labels, places, axis=1),
    'label_valid': np.take_along_axis(masked.label_mask, places, axis=1),
  }


def masked_batches(
  documents: Documents, *, length: int, batch_size: int, rate: float, seed: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
  """start_step -> batches of random crops with hidden words; a batch is a function of the seed and its step alone."""
  crops = RandomCrops(documents, length, batch_size, seed=seed)
  num_queries = max(8, round(1.15 * rate * length))

  def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count(start_step):
      random = np.random.default_rng((seed, 3, step))
      yield hidden_words(crops.batch(step), random, rate=rate, num_queries=num_queries)

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

  radius: int
  span: int

  @classmethod
  def of(cls, recipe: TextRecipe) -> ReadText:
    return cls(recipe.radius, recipe.length)

  def tokens(self, ids: AnyArray, valid: AnyArray) -> Tokens:
    return neighbourhoods(jnp.asarray(ids), radius=self.radius, span=self.span, valid=jnp.asarray(valid))

  def queries(self, model: PerceiverIO, tokens: Tokens, places: AnyArray) -> Tokens:
    places = jnp.asarray(places)
    learned = isinstance(model.config.decoder.queries, LearnedQueries)
    return Tokens(values=places) if learned else tokens_at(tokens, places)

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
  evaluations: int = 0,
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
    evaluate_every=num_steps // evaluations if evaluations else 0,
    ema_decay=0.99,
    **fit_settings,
  )


def step_flops(model: nnx.Module, read: ReadText, batch: Batch) -> int:
  """Floating-point operations of one loss and its gradient."""
  graphdef, state = nnx.split(model)
  loss = masked_loss(read)
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
