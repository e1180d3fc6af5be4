"""How notebook 08 reads words aloud: letters are the source, one phoneme a timestep is the target.

Every function takes arrays and returns arrays or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.adapters import EmbeddingAdapterConfig, LearnedPositions
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data import pronunciation as words
from perceiver_lib.data.loading import ArraySource, training_batches
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.flops import count_flops
from perceiver_lib.generation.beam_search import beam_search
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.models.unified_cached import UnifiedCache, latents_so_far, start, step
from perceiver_lib.queries import PositionQueries, position_queries
from perceiver_lib.scores.sequences import ErrorRates, error_rates, until
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from perceiver_lib.training.fit import FitResult, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.optimizers import muon_and_adam


@dataclasses.dataclass(frozen=True, kw_only=True)
class PronunciationRecipe:
  """Settings of one profile, chosen on the validation words.

  Attributes:
    train_steps: of the unified model and of the Transformer.
    num_timesteps: most phonemes of a word, its END among them; training leaves longer words out.
    num_latents, num_latent_channels, num_layers, widening_factor: of the unified model, latents for each timestep.
    read_heads: of its encoder; with the latents, how many letters a timestep can tell apart.
    transformer_channels: of the Transformer, which has as many layers; chosen so that both take the same operations.
    num_test_words, num_table_words: take only so many words to test on, and to make the baseline's table of.
  """

  train_steps: int
  num_timesteps: int = 12
  num_latents: int = 4
  num_latent_channels: int = 96
  num_layers: int = 3
  transformer_channels: int = 128
  widening_factor: int = 2
  read_heads: int = 4
  num_heads: int = 2
  batch_size: int = 64
  learning_rate: float = 2e-3
  matrix_learning_rate: float = 0.02
  num_test_words: int | None = None
  num_table_words: int | None = None


RECIPES = {
  'smoke': PronunciationRecipe(
    train_steps=4, num_latents=2, num_latent_channels=16, num_layers=1, transformer_channels=16, batch_size=8,
    num_test_words=256, num_table_words=2_000
  ),
  'demo': PronunciationRecipe(train_steps=520, num_test_words=2_000),
  'full': PronunciationRecipe(
    train_steps=40_000, num_timesteps=16, num_latents=8, num_latent_channels=256, num_layers=6,
    transformer_channels=480, batch_size=512
  ),
}  # fmt: skip

Arrays = Mapping[str, np.ndarray]


def unified_config(recipe: PronunciationRecipe) -> UnifiedPerceiverConfig:
  """Each timestep reads all letters and its own newest phoneme (window 1); the past comes from earlier latents."""
  t, d = recipe.num_timesteps, recipe.num_latent_channels
  position = LearnedPositions(shape=(words.MAX_LETTERS + t,), num_channels=d)
  return UnifiedPerceiverConfig(
    input_adapter=EmbeddingAdapterConfig(num_embeddings=words.VOCABULARY_SIZE, num_channels=d, position=position),
    latents=LearnedLatents(num_latents=recipe.num_latents, num_timesteps=t, encoder_window=1),
    num_latent_channels=d,
    num_self_attends_per_block=recipe.num_layers,
    cross_attend=LayerConfig(num_heads=recipe.read_heads),
    self_attend=LayerConfig(num_heads=recipe.num_heads, widening_factor=recipe.widening_factor),
    decoder=DecoderConfig(
      queries=PositionQueries(position=LearnedPositions(shape=(t,), num_channels=d)),
      num_outputs=words.VOCABULARY_SIZE,
      cross_attend=LayerConfig(num_heads=4),
    ),
  )


def source_tokens(letters: Int[Array, 'b m']) -> Tokens:
  """Letters, which every timestep may read."""
  b, m = letters.shape
  return Tokens(
    values=letters,
    position=jnp.arange(m, dtype=jnp.int32)[None, :, None],
    time=jnp.full((b, m), SOURCE_TIME, jnp.int32),
    valid=letters != words.PAD,
  )


def pair_tokens(letters: Int[Array, 'b m'], known: Int[Array, 'b t']) -> Tokens:
  """Letters, and the phoneme that each timestep brings: START at 0, then what was said one step before."""
  source, (b, t) = source_tokens(letters), known.shape
  steps = jnp.arange(t, dtype=jnp.int32)
  return Tokens(
    values=jnp.concatenate([source.values, known], axis=1),
    position=jnp.arange(words.MAX_LETTERS + t, dtype=jnp.int32)[None, :, None],
    time=jnp.concatenate([source.time, jnp.broadcast_to(steps, (b, t))], axis=1),
    valid=jnp.concatenate([source.valid, known != words.PAD], axis=1),
  )


def shifted(phonemes: Int[Array, 'b t']) -> Int[Array, 'b t']:
  """What is known at each timestep: START, and all phonemes but the last."""
  return jnp.concatenate([jnp.full_like(phonemes[:, :1], words.START), phonemes[:, :-1]], axis=1)


def step_queries(batch_size: int, num_timesteps: int) -> Tokens:
  """One question a timestep: what is the next phoneme?"""
  steps = jnp.arange(num_timesteps, dtype=jnp.int32)
  return position_queries(
    steps[:, None], batch_size=batch_size, time=jnp.broadcast_to(steps, (batch_size, num_timesteps))
  )


def unified_logits(
  model: UnifiedPerceiver, letters: Int[Array, 'b m'], known: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of the next phoneme at every timestep."""
  b, t = known.shape
  return model(pair_tokens(letters, known), step_queries(b, t), num_timesteps=t, rngs=rngs)


def transformer_config(recipe: PronunciationRecipe) -> TransformerConfig:
  """As many operations a word as the unified model, in other places: letters and phonemes go through every layer."""
  d = recipe.transformer_channels
  position = LearnedPositions(shape=(words.MAX_LETTERS + recipe.num_timesteps,), num_channels=d)
  return TransformerConfig(
    input_adapter=EmbeddingAdapterConfig(num_embeddings=words.VOCABULARY_SIZE, num_channels=d, position=position),
    num_layers=recipe.num_layers,
    num_outputs=words.VOCABULARY_SIZE,
    self_attend=LayerConfig(num_heads=recipe.num_heads, widening_factor=4),
  )


def transformer_logits(
  model: Transformer, letters: Int[Array, 'b m'], known: Int[Array, 'b t'], rngs: nnx.Rngs | None = None
) -> Float[Array, 'b t e']:
  """Scores of the next phoneme at every timestep."""
  return model(pair_tokens(letters, known), rngs=rngs)[:, words.MAX_LETTERS :]


Logits = Callable[..., Float[Array, 'b t e']]


def flops_a_word(logits: Logits, model: nnx.Module, num_timesteps: int) -> int:
  """Operations of one forward pass over one word, as `perceiver_lib.flops` counts them."""
  letters, known = (jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (words.MAX_LETTERS, num_timesteps))
  return count_flops(logits, model, letters, known)


def loss_of(logits: Logits) -> Callable:
  """Cross-entropy of the next phoneme, in nats a phoneme."""

  def loss_fn(model: nnx.Module, batch: Mapping[str, Any], rngs: nnx.Rngs | None) -> tuple[Array, dict[str, Array]]:
    letters, phonemes = jnp.asarray(batch['letters']), jnp.asarray(batch['phonemes'])
    scores, valid = logits(model, letters, shifted(phonemes), rngs), phonemes != words.PAD
    right = jnp.sum((jnp.argmax(scores, axis=-1) == phonemes) & valid, dtype=jnp.float32)
    accuracy = right / jnp.sum(valid, dtype=jnp.float32)
    return cross_entropy(scores, phonemes, valid=valid), {'accuracy': accuracy}

  return loss_fn


def first_words(source: words.WordSource, count: int | None) -> words.WordSource:
  arrays = {name: array[:count] for name, array in source.arrays.items()}
  return words.WordSource(arrays, source.words[:count], source.variants[:count])


def phoneme_entropy(train: words.WordSource) -> float:
  """Nats of a phoneme, or END, drawn by its frequency: the loss of who knows frequencies only."""
  counts = np.bincount(train.arrays['phonemes'].ravel())[words.END :]
  shares = counts[counts > 0] / counts.sum()
  return float(-np.sum(shares * np.log(shares)))


def training_words(train: words.WordSource, num_timesteps: int) -> ArraySource:
  """The words whose phonemes, with END, fit into so many timesteps."""
  fits = (train.arrays['phonemes'] != words.PAD).sum(1) <= num_timesteps
  return ArraySource(
    {'letters': train.arrays['letters'][fits], 'phonemes': train.arrays['phonemes'][fits, :num_timesteps]}
  )


def train_speller(
  model: nnx.Module,
  logits: Logits,
  train: words.WordSource,
  validation: words.WordSource,
  *,
  recipe: PronunciationRecipe,
  seed: int,
  evaluations: int = 8,
  **fit_settings: Any,
) -> FitResult:
  """Muon and Adam, and a moving average of the weights; validation loss `evaluations` times."""
  source, held_out = (training_words(part, recipe.num_timesteps).arrays for part in (train, validation))
  some = {name: array[:1024] for name, array in held_out.items()}
  loss = jax.jit(lambda model, batch: loss_of(logits)(model, batch, None))

  def evaluate(model: nnx.Module) -> dict[str, float]:
    value, metrics = loss(model, some)
    return {'validation_loss': float(value), 'validation_accuracy': float(metrics['accuracy'])}

  num_steps = recipe.train_steps
  return fit(
    model,
    loss_of(logits),
    lambda start_step: training_batches(ArraySource(source), recipe.batch_size, seed=seed, start_step=start_step),
    optimizer=muon_and_adam(
      num_steps, learning_rate=recipe.learning_rate, matrix_learning_rate=recipe.matrix_learning_rate
    ),
    num_steps=num_steps,
    seed=seed,
    evaluate=evaluate,
    evaluations=evaluations,
    ema_decay=0.99,
    **fit_settings,
  )


@functools.partial(jax.jit, static_argnames='num_beams')
def speak(model: UnifiedPerceiver, letters: Int[Array, 'b m'], *, num_beams: int = 1) -> Int[Array, 'b t']:
  """The phonemes of each word by beam search over the cache: a step computes the S latents of the new timestep only."""
  t = model.config.latents.num_timesteps

  def append(cache: UnifiedCache, newest: Int[Array, 'r']) -> tuple[UnifiedCache, Float[Array, 'r e']]:
    time, rows = cache.next_step, len(newest)
    place = jnp.full((1, 1, 1), words.MAX_LETTERS, jnp.int32) + time
    cache, _ = step(model, cache, Tokens(values=newest[:, None], position=place))
    asked = position_queries(time[None, None], batch_size=rows, time=jnp.broadcast_to(time, (rows, 1)))
    return cache, model.decode(latents_so_far(model, cache), asked)[:, 0]

  cache, _ = start(model, source_tokens(letters), num_timesteps=0, max_timesteps=t)
  return _searched(append, cache, len(letters), num_beams, t)


@functools.partial(jax.jit, static_argnames=('num_beams', 'num_timesteps'))
def speak_by_transformer(
  model: Transformer, letters: Int[Array, 'b m'], *, num_timesteps: int, num_beams: int = 1
) -> Int[Array, 'b t']:
  """The same search over the Transformer's cache."""
  append = lambda cache, newest: model.step(cache, Tokens(values=newest[:, None]))  # noqa: E731
  cache, _ = model.start(source_tokens(letters), room=num_timesteps)
  return _searched(append, cache, len(letters), num_beams, num_timesteps)


def _searched(append: Callable, cache: Any, num_words: int, num_beams: int, num_tokens: int) -> Int[Array, 'b t']:
  cache, scores = append(cache, jnp.full((num_words,), words.START, jnp.int32))
  beams = beam_search(append, cache, scores, num_beams=num_beams, num_tokens=num_tokens, end_token=words.END)
  return beams.tokens[:, 0]


def spoken_error_rates(
  speak: Callable[[Int[Array, 'b m']], Int[Array, 'b t']], held_out: words.WordSource, *, batch_size: int = 256
) -> ErrorRates:
  """Phoneme and word error rates of what `speak` makes of the letters."""
  letters = held_out.arrays['letters']
  rows = np.minimum(np.arange(-(-len(letters) // batch_size) * batch_size), len(letters) - 1)
  said = np.concatenate([np.asarray(speak(letters[part])) for part in rows.reshape(-1, batch_size)])
  return error_rates(until(said[: len(letters)], words.END), held_out.variants)


def aligned(
  logits: Logits, model: nnx.Module, word: str, letters: Int[np.ndarray, 'm'], said: Int[np.ndarray, 't']
) -> tuple[list[str], list[str], Float[np.ndarray, 'o w']]:
  """Letters, phonemes, and `hidden_letter_cost` of their pairs, for `plots.alignment`."""
  [phonemes] = until(said[None], words.END)
  names = [words.PHONEMES[number - words.FIRST_PHONEME] for number in phonemes]
  return list(word), names, hidden_letter_cost(logits, model, letters, said)[: len(names), : len(word)]


def hidden_letter_cost(
  logits: Logits, model: nnx.Module, letters: Int[np.ndarray, 'm'], said: Int[np.ndarray, 't']
) -> Float[np.ndarray, 't m']:
  """How much of each phoneme's probability goes when a letter of one word is hidden, every letter in turn.

  Args:
    letters: ids [m] of one word, padded.
    said: ids [t] of its phonemes, padded; they are what the model is given as the past.
  """
  num_letters = len(letters)
  hidden = np.where(np.eye(num_letters, dtype=bool), words.PAD, letters)
  variants = np.concatenate([letters[None], hidden]).astype(np.int32)
  rows = np.broadcast_to(said, (num_letters + 1, len(said)))
  scores = jax.jit(logits)(model, variants, shifted(jnp.asarray(rows)))
  share = np.take_along_axis(np.asarray(jax.nn.softmax(scores)), rows[..., None], axis=-1)[..., 0]
  return (share[:1] - share[1:]).T
