"""How notebook 06 trains Perceiver AR: the mirrored copy task as a ladder of lengths, and a byte model of Shakespeare.

Every function takes arrays and returns arrays, numbers or a `FitResult`, so a GPU job can call it without the notebook.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from perceiver_lib import checkpoints
from perceiver_lib.adapters import INITIAL_SCALE, EmbeddingAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.caching import LatentWindow
from perceiver_lib.data.text import Documents, RandomCrops
from perceiver_lib.generation import Sampler, generate
from perceiver_lib.losses import cross_entropy
from perceiver_lib.modalities.text import BOS, EOS, NUM_SPECIAL, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_ar_latents import rank_from_end, validity
from perceiver_lib.positions import SinusoidalPositions
from perceiver_lib.sequences import (
  FullLatents,
  MinimumCrop,
  NextTokens,
  StridedScore,
  StridedWindows,
  at_latents,
  evaluate_strided,
  next_token_loss,
  next_tokens,
  random_crop,
)
from perceiver_lib.text_baselines import compressor_bits, ngram_bits, unigram_bits
from perceiver_lib.tokens import Tokens
from perceiver_lib.training import FitResult, fit

LINE_END = NUM_SPECIAL + ord('\n')
"""Stands before every text, as in `text_baselines.ngram_bits`."""

LossFn = Callable[..., tuple[Array, Mapping[str, Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
  """One length of the ladder: `length` tokens a sequence, of which a call predicts `num_latents`."""

  length: int
  num_latents: int
  batch_size: int
  num_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe:
  """Settings of one profile; those of `demo` were chosen on the two validation plays.

  Attributes:
    ladder: of the copy task, shortest first; each rung begins with the weights of the one before.
    copy_width, copy_layers: channels, and self-attends, of the copying model; 0 channels = the paper's own model.
    window: bytes that the windowed Transformer sees, at rung `windowed_rung`.
    context_length, num_latents, width, num_layers: of the language model.
    learning_rate: of Adam; `matrix_learning_rate` that of Muon, for the matrices inside the layers.
    scored_bytes: of each validation play, for choices and sweeps.
    stride: of the test.
  """

  ladder: tuple[Rung, ...]
  windowed_rung: int
  window: int
  copy_width: int = 128
  copy_layers: int = 1
  context_length: int
  num_latents: int
  width: int
  num_layers: int
  num_heads: int = 4
  dropout: float = 0.0
  batch_size: int = 16
  train_steps: int
  learning_rate: float = 4e-3
  matrix_learning_rate: float = 0.02
  scored_bytes: int
  stride: int


RECIPES = {
  'smoke': TextRecipe(
    ladder=(
      Rung(length=16, num_latents=7, batch_size=2, num_steps=2),
      Rung(length=32, num_latents=8, batch_size=2, num_steps=2),
    ),
    windowed_rung=1,
    window=8,
    copy_width=16,
    context_length=32,
    num_latents=16,
    width=16,
    num_layers=1,
    num_heads=2,
    batch_size=2,
    train_steps=2,
    scored_bytes=64,
    stride=16,
  ),
  'demo': TextRecipe(
    ladder=(
      Rung(length=16, num_latents=7, batch_size=64, num_steps=250),
      Rung(length=64, num_latents=31, batch_size=32, num_steps=150),
      Rung(length=256, num_latents=64, batch_size=16, num_steps=150),
      Rung(length=1_024, num_latents=64, batch_size=8, num_steps=100),
    ),
    windowed_rung=2,
    window=64,
    context_length=256,
    num_latents=128,
    width=128,
    num_layers=4,
    train_steps=1_200,
    scored_bytes=8_192,
    stride=64,
  ),
  'full': TextRecipe(
    ladder=(
      Rung(length=16, num_latents=7, batch_size=128, num_steps=500),
      Rung(length=64, num_latents=31, batch_size=128, num_steps=500),
      Rung(length=256, num_latents=127, batch_size=64, num_steps=500),
      Rung(length=1_024, num_latents=256, batch_size=64, num_steps=1_000),
      Rung(length=8_192, num_latents=512, batch_size=32, num_steps=2_000),
    ),
    windowed_rung=2,
    window=64,
    copy_width=256,
    copy_layers=2,
    context_length=1_024,
    num_latents=512,
    width=512,
    num_layers=8,
    num_heads=8,
    dropout=0.2,
    batch_size=64,
    train_steps=6_000,
    learning_rate=2e-3,
    matrix_learning_rate=0.01,
    scored_bytes=65_536,
    stride=64,
  ),
}
RECIPES['paper'] = dataclasses.replace(
  RECIPES['full'],
  # The paper's model and length; that one climbs there from shorter rungs is ours.
  ladder=(
    Rung(length=32, num_latents=15, batch_size=1024, num_steps=5_000),
    Rung(length=1_024, num_latents=511, batch_size=1024, num_steps=5_000),
    Rung(length=131_072, num_latents=1_024, batch_size=4096, num_steps=25_000),
  ),
  windowed_rung=1,
  copy_width=0,
)


# The copy task.


def copy_config(recipe: TextRecipe) -> PerceiverARConfig:
  """Fixed sinusoidal positions, added, as the paper copies; `copy_width=0` is its model, with this vocabulary."""
  if recipe.copy_width == 0:
    paper = PerceiverARConfig.paper_copy()
    adapter = dataclasses.replace(paper.input_adapter, num_embeddings=VOCAB_SIZE)
    return dataclasses.replace(paper, input_adapter=adapter, num_outputs=VOCAB_SIZE)
  layer = LayerConfig(num_heads=4, widening_factor=4, activation='squared_relu')
  width = recipe.copy_width
  return PerceiverARConfig(
    input_adapter=EmbeddingAdapterConfig(
      num_embeddings=VOCAB_SIZE, num_channels=width, position=SinusoidalPositions(num_channels=width)
    ),
    num_latents=recipe.ladder[0].num_latents,
    num_latent_channels=width,
    num_outputs=VOCAB_SIZE,
    num_self_attends=recipe.copy_layers,
    cross_attend=layer,
    self_attend=layer,
  )


def copy_model(recipe: TextRecipe, seed: int) -> PerceiverAR:
  """With byte vectors that begin as long as the position vectors: 35 times shorter, no byte could be read for long."""
  model = PerceiverAR(copy_config(recipe), rngs=nnx.Rngs(seed))
  embedding = model.input_adapter.embedding
  embedding[...] = embedding[...] * (2**-0.5 / INITIAL_SCALE)
  return model


def copy_batch(length: int, batch_size: int, seed: int, step: int) -> dict[str, np.ndarray]:
  """Start, length / 2 - 1 random bytes, the same bytes backwards, end: perceiver-ar `dataset.py`, `random_mirrored`.

  'position' counts from the mirror, so that a byte and its copy lie at p and -p (as inputs) whatever the length, and a
  rung can go on with the weights of the one before. The paper's own positions count from the start.
  """
  half = np.random.default_rng((seed, length, step)).integers(0, 256, (batch_size, length // 2 - 1)) + NUM_SPECIAL
  ends = (np.full((batch_size, 1), token) for token in (BOS, EOS))
  first, last = ends
  position = np.arange(length, dtype=np.int32) - (length // 2 - 1)
  return {
    'ids': np.concatenate([first, half, half[:, ::-1], last], axis=1).astype(np.int32),
    'position': np.tile(position[None, :, None], (batch_size, 1, 1)),
  }


def copy_batches(rung: Rung, seed: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
  return (copy_batch(rung.length, rung.batch_size, seed, step) for step in itertools.count(start_step))


def copy_examples(ids: Int[Array, 'b l'], position: Int[Array, 'b l 1']) -> NextTokens:
  """Targets are the second half, from the first copied byte to the end token."""
  second = jnp.broadcast_to(jnp.arange(ids.shape[1]) >= ids.shape[1] // 2, ids.shape)
  return next_tokens(ids, label_mask=second, position=position)


def last_inputs(examples: NextTokens, window: int | None) -> NextTokens:
  """Hides all but the last `window` inputs of a row. With a latent on each of them nothing is left but a Transformer.

  A Perceiver AR whose context is its latents is a causal Transformer of one layer more than its self-attends.
  """
  if window is None:
    return examples
  valid = validity(examples.inputs)
  valid = valid & (rank_from_end(valid) < window)
  return dataclasses.replace(
    examples, inputs=dataclasses.replace(examples.inputs, valid=valid), scored=examples.scored & valid
  )


@functools.lru_cache(maxsize=16)
def copy_loss(num_latents: int, window: int | None = None) -> LossFn:
  """Loss on random crops that end in the second half (perceiver-ar), with its z-loss of 1e-4."""

  def loss_fn(model: PerceiverAR, batch: Mapping[str, Array], rngs: nnx.Rngs) -> tuple[Array, Mapping[str, Array]]:
    examples = copy_examples(batch['ids'], batch['position'])
    length = batch['ids'].shape[1]
    policy = MinimumCrop(length=min(length // 2 + num_latents - 1, length - 1))
    examples = last_inputs(random_crop(examples, policy, rngs.dropout()), window)
    logits = model(examples.inputs, num_latents=num_latents, rngs=rngs)
    return next_token_loss(logits, examples, z_loss=1e-4)

  return loss_fn


def copy_accuracy(
  model: PerceiverAR, rung: Rung, seed: int, *, window: int | None = None, num_sequences: int = 16
) -> tuple[Int[np.ndarray, 'd'], Float[np.ndarray, 'd']]:
  """Distances between a byte and its copy, 1 3 5 ..., and the share of new sequences in which it is right at each.

  A window slides byte by byte, so that every prediction sees all of it; else crops move on by the latents.
  """
  batch = copy_batch(rung.length, num_sequences, seed + 1_000_003, 0)
  num_targets = rung.length // 2 - 1
  step = rung.num_latents if window is None else 1
  right = np.zeros((num_sequences, num_targets), bool)
  for first in range(0, num_targets, step):
    stop = min(first + step, num_targets)
    predicted = np.asarray(_copied(model, batch, jnp.int32(rung.length // 2 - 1 + stop), rung.num_latents, window))
    truth = batch['ids'][:, rung.length // 2 + first : rung.length // 2 + stop]
    right[:, first:stop] = predicted[:, first - stop :] == truth
  return 2 * np.arange(num_targets) + 1, right.mean(axis=0)


@functools.partial(nnx.jit, static_argnums=(3, 4))
def _copied(
  model: PerceiverAR, batch: Mapping[str, Array], num_inputs: Int[Array, ''], num_latents: int, window: int | None
) -> Int[Array, 'b n']:
  """The likeliest next tokens at the last latents of the first `num_inputs` inputs."""
  examples = copy_examples(batch['ids'], batch['position'])
  shape = examples.targets.shape
  kept = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32) < num_inputs, shape)
  examples = last_inputs(dataclasses.replace(examples, inputs=dataclasses.replace(examples.inputs, valid=kept)), window)
  return jnp.argmax(model(examples.inputs, num_latents=num_latents).values, axis=-1)


def climb(
  model: PerceiverAR,
  rung: Rung,
  recipe: TextRecipe,
  seed: int,
  *,
  window: int | None = None,
  checkpoint_dir: Path | None = None,
) -> FitResult:
  """Trains one rung from the weights of the model; with a window, the windowed Transformer in the same steps."""
  settings = {'task': 'copy', 'recipe': recipe, 'rung': rung, 'window': window}
  return fit(
    model,
    copy_loss(rung.num_latents, window),
    lambda step: copy_batches(rung, seed, step),
    optimizer=muon_and_adam(recipe, rung.num_steps),
    num_steps=rung.num_steps,
    seed=seed,
    checkpoint_dir=checkpoint_dir,
    checkpoint_every=rung.num_steps if checkpoint_dir else None,
    fingerprint=checkpoints.fingerprint(**settings) if checkpoint_dir else None,
  )


# The language model.


def language_config(recipe: TextRecipe) -> PerceiverARConfig:
  """Bytes with rotary positions on half of each head, as the paper's text models."""
  return PerceiverARConfig.of_bytes(
    num_channels=recipe.width,
    num_latents=recipe.num_latents,
    num_self_attends=recipe.num_layers,
    num_heads=recipe.num_heads,
    vocabulary_size=VOCAB_SIZE,
    dropout=recipe.dropout,
  )


def muon_and_adam(recipe: TextRecipe, num_steps: int) -> optax.GradientTransformation:
  """Muon (Jordan 2024; optax) for matrices inside layers, Adam for tables, head, biases and scales; to zero linearly.

  Both warm up over a twentieth of the steps. Muon's step has the same size in all directions of a matrix.
  """
  warmup = max(1, num_steps // 20)

  def schedule(peak: float) -> optax.Schedule:
    down = optax.linear_schedule(peak, 0.0, num_steps - warmup + 1)
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), down], [warmup])

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.contrib.muon(
      schedule(recipe.matrix_learning_rate),
      adam_learning_rate=schedule(recipe.learning_rate),
      adam_b2=0.98,
      muon_weight_dimension_numbers=_matrices_inside,
    ),
  )


def _matrices_inside(params: Any) -> Any:
  """Which parameters Muon turns: kernels of the layers, neither the byte table nor the head."""

  def dimensions(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
    names = {str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path}
    inside = leaf.ndim == 2 and names.isdisjoint({'embedding', 'head'})
    return optax.contrib.MuonDimensionNumbers() if inside else None

  return jax.tree_util.tree_map_with_path(dimensions, params)


@functools.lru_cache(maxsize=16)
def language_loss(num_latents: int) -> LossFn:
  """Loss on random crops that fill every latent."""

  def loss_fn(model: PerceiverAR, batch: Mapping[str, Array], rngs: nnx.Rngs) -> tuple[Array, Mapping[str, Array]]:
    ids = batch['bytes'].astype(jnp.int32) + NUM_SPECIAL
    examples = next_tokens(ids, valid=batch['valid'], begin_token=LINE_END)
    examples = random_crop(examples, FullLatents(num_latents=num_latents), rngs.dropout())
    return next_token_loss(model(examples.inputs, num_latents=num_latents, rngs=rngs), examples)

  return loss_fn


def train_language_model(
  model: PerceiverAR,
  train: Documents,
  validation: Documents,
  *,
  recipe: TextRecipe,
  seed: int,
  evaluations: int = 4,
  checkpoint_dir: Path | None = None,
) -> FitResult:
  """Random crops of whole plays; bits per byte of the validation plays' first bytes `evaluations` times."""
  crops = RandomCrops(train, recipe.context_length, recipe.batch_size, seed=seed)
  documents = texts_as_ids(validation, recipe.scored_bytes)

  def evaluate(trained: PerceiverAR) -> dict[str, float]:
    score = bits_of(trained, documents, recipe, stride=recipe.num_latents)
    return {'validation_bits_per_byte': score.bits_per_byte}

  return fit(
    model,
    language_loss(recipe.num_latents),
    crops.batches,
    optimizer=muon_and_adam(recipe, recipe.train_steps),
    num_steps=recipe.train_steps,
    seed=seed,
    evaluate=evaluate,
    evaluate_every=max(1, recipe.train_steps // evaluations),
    checkpoint_dir=checkpoint_dir,
    checkpoint_every=max(1, recipe.train_steps // 4) if checkpoint_dir else None,
    fingerprint=(
      checkpoints.fingerprint(task='language', recipe=recipe, data=train.checksum, evaluations=evaluations)
      if checkpoint_dir
      else None
    ),
  )


def texts_as_ids(documents: Documents, num_bytes: int | None = None) -> list[Int[np.ndarray, 'l']]:
  """Every document, or its first bytes, as ids."""
  texts = (np.frombuffer(documents[index]['text'], np.uint8)[:num_bytes] for index in range(len(documents)))
  return [ByteTokenizer.ids(text) for text in texts]


def bits_of(
  model: PerceiverAR,
  documents: Sequence[Int[np.ndarray, 'l']],
  recipe: TextRecipe,
  *,
  stride: int,
  context_length: int | None = None,
  num_latents: int | None = None,
) -> StridedScore:
  """Strided evaluation; context and latents are the recipe's unless given."""
  windows = StridedWindows(
    documents=documents,
    context_length=context_length or recipe.context_length,
    stride=stride,
    begin_token=LINE_END,
  )
  return evaluate_strided(model, windows, num_latents=num_latents or recipe.num_latents)


def baselines(train: bytes, test: bytes, *, max_order: int = 6) -> dict[str, float]:
  """Bits a byte of tables and compressors that may read the training text, and of compressors that may not."""
  orders = ngram_bits(train, test, max_order=max_order)
  named = {'unigram': unigram_bits(train, test)}
  named |= {f'{order}-gram (Kneser-Ney)': bits for order, bits in enumerate(orders, 1) if order in (2, 3, max_order)}
  return named | compressor_bits(train, test)


def by_context(
  model: PerceiverAR, documents: Sequence[Int[np.ndarray, 'l']], recipe: TextRecipe, lengths: Sequence[int]
) -> dict[int, float]:
  """Bits a byte where no prediction sees more than so many bytes, at the same number of scored bytes a window."""
  stride = min(lengths) // 2
  scores = {}
  for length in lengths:
    latents = min(recipe.num_latents, length)
    score = bits_of(model, documents, recipe, stride=stride, context_length=length, num_latents=latents)
    scores[length] = score.bits_per_byte
  return scores


def by_latents(
  model: PerceiverAR, documents: Sequence[Int[np.ndarray, 'l']], recipe: TextRecipe, numbers: Sequence[int]
) -> dict[int, tuple[float, float]]:
  """Bits a byte, and milliseconds a call on one window, for other numbers of latents than the model learned with.

  The stride is the same for all, a half of the fewest latents.
  """
  stride, results = max(1, min(numbers) // 2), {}
  window = Tokens(values=jnp.asarray(documents[0][: recipe.context_length])[None])
  for number in numbers:
    score = bits_of(model, documents, recipe, stride=stride, num_latents=number)
    results[number] = score.bits_per_byte, 1e3 * median_seconds(lambda n=number: _logits(model, window, n))
  return results


def bits_of_each_byte(model: PerceiverAR, text: UInt8[np.ndarray, 'm'], num_latents: int) -> Float[np.ndarray, 'n']:
  """-log2 p of the last `num_latents` bytes of a text, each given all before it."""
  examples = next_tokens(jnp.asarray(ByteTokenizer.ids(text))[None])
  logits = _logits(model, examples.inputs, num_latents)
  nats = cross_entropy(logits.values, at_latents(examples.targets, logits), reduction='none')
  return np.asarray(nats[0]) / np.log(2)


@functools.partial(nnx.jit, static_argnums=2)
def _logits(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Tokens:
  return model(inputs, num_latents=num_latents)


# Generation.

BYTES_ONLY = np.arange(VOCAB_SIZE)[None] >= NUM_SPECIAL
"""`allowed` of `generation.stream`: a text holds no special token."""


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
  """Of several calls, after one that compiles."""
  jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - begin)
  return float(np.median(times))


def generation_speed(
  model: PerceiverAR, prompt: Int[np.ndarray, '1 m'], *, context_length: int, num_latents: int, num_tokens: int
) -> dict[str, float]:
  """Tokens a second, the prompt's reading included: {'cached', 'recomputed'}.

  Recomputed is the same loop with a window that has no room: every token reads its whole context anew.
  """
  speeds = {}
  for name, num_start in (('cached', num_latents // 2), ('recomputed', num_latents)):
    window = LatentWindow(context_length=context_length, num_latents=num_latents, num_start_latents=num_start)
    settings = {'window': window, 'num_tokens': num_tokens, 'sampler': Sampler(temperature=0.8), 'allowed': BYTES_ONLY}
    speeds[name] = num_tokens / median_seconds(lambda settings=settings: generate(model, prompt, **settings), 3)
  return speeds
