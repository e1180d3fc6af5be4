"""Notebook 10: one training step of several models at growing lengths, and what one encoding is good for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.experiments.measuring import Call, compiled, exponent, in_turn, temporary_megabytes
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.wording import describe_spread
from perceiver_lib.experiments.workers import Worker, answers_in_turn
from perceiver_lib.flops import count_flops
from perceiver_lib.generation.stream import GREEDY, generate
from perceiver_lib.lessons import unified_io_ar
from perceiver_lib.lessons.tour import random_bytes
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import PositionQueries, position_queries
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.host import keep_freed_memory
from perceiver_lib.training.losses import cross_entropy

NUM_LATENTS = WIDTH = 256
NUM_LAYERS, NUM_HEADS = 6, 8
NUM_IDS = 256

KINDS = {
  'streamed': 'Perceiver, streamed read',
  'dense': 'Perceiver, all keys at once',
  'ar': 'Perceiver AR',
  'unified': 'unified, 16 timesteps x 16 latents',
  'transformer': 'byte Transformer',
}
"""What is measured: 256 latents x 256 channels and 6 layers of 8 heads; the Transformer has no latents."""


class Problem(NamedTuple):
  """A model with shapes in place of parameters, an input, and the loss of both."""

  model: nnx.Module
  tokens: Tokens
  loss: Callable[[nnx.Module, Tokens], Float[Array, '']]

  def forward_operations(self) -> int:
    return count_flops(self.loss, self.model, self.tokens)

  def operations(self) -> int:
    """Those of a step, what the backward pass computes again included."""
    return count_flops(jax.value_and_grad(self.loss), self.model, self.tokens)

  def step(self) -> tuple[Call, Any]:
    """Something that makes one step, forward and backward, and its compiled program."""
    program = compiled(jax.value_and_grad(self.loss), self.model, self.tokens)
    model = filled(self.model, scale=0.02)

    def call() -> None:
      loss, _ = jax.block_until_ready(program(model, self.tokens))
      if not np.isfinite(loss):
        raise ValueError(f'A step on {self.tokens.num_tokens:,} bytes gave the loss {loss}; its cost means nothing.')

    return call, program


def problem(kind: str, num_bytes: int, *, num_layers: int = NUM_LAYERS, num_latents: int = NUM_LATENTS) -> Problem:
  """One of `KINDS` on random bytes, one token a byte; `num_latents` is for the Perceiver alone."""
  ids = jnp.asarray(np.random.default_rng(0).integers(0, NUM_IDS, (1, num_bytes)), jnp.int32)
  if kind in ('streamed', 'dense'):
    config = dataclasses.replace(
      PerceiverConfig.of_bytes(num_bytes), num_latents=num_latents, num_self_attends_per_block=num_layers
    )
    chunk_size = num_bytes if kind == 'dense' else None
    loss = lambda model, tokens: cross_entropy(model(tokens, chunk_size=chunk_size), jnp.zeros((1,), jnp.int32))  # noqa: E731
    return Problem(abstract(Perceiver, config), random_bytes(num_bytes), loss)
  if kind == 'ar':
    config = PerceiverARConfig.of_bytes(
      num_channels=WIDTH,
      num_latents=min(NUM_LATENTS, num_bytes),
      num_self_attends=num_layers,
      num_heads=NUM_HEADS,
      vocabulary_size=NUM_IDS,
    )
    last = lambda tokens: tokens.values[:, -config.num_latents :]  # noqa: E731
    loss = lambda model, tokens: cross_entropy(model(tokens).values, last(tokens))  # noqa: E731
    return Problem(abstract(PerceiverAR, config), Tokens(values=ids), loss)
  if kind == 'unified':
    config = dataclasses.replace(
      UnifiedPerceiverConfig.of_bytes(num_bytes, num_channels=WIDTH), num_self_attends_per_block=num_layers
    )
    return Problem(
      abstract(UnifiedPerceiver, config), unified_io_ar.random_timed_bytes(num_bytes), unified_io_ar.byte_loss
    )
  config = TransformerConfig.of_bytes(
    num_channels=WIDTH, num_layers=num_layers, num_heads=NUM_HEADS, vocabulary_size=NUM_IDS
  )
  loss = lambda model, tokens: cross_entropy(model(tokens), tokens.values)  # noqa: E731
  return Problem(abstract(Transformer, config), Tokens(values=ids), loss)


def sweep(kind: str, steps: Mapping[int, int], num_layers: int = NUM_LAYERS) -> list[dict[str, Any]]:
  """Measures one kind at several lengths, each in a process of its own; the rounds visit the lengths in turn.

  Args:
    kind: one of `KINDS`.
    steps: log2 of the input bytes -> timed steps, 0 = compiled only.
    num_layers: of the processor, or of the Transformer.

  Returns:
    Rows with `num_bytes`, `seconds` (a list), `peak_gigabytes` of the process, `temporary_megabytes` that the compiled
    step sets aside, `operations` and `forward_operations` where they can be counted; a row whose process ended has a
    `status` too.
  """
  function = 'perceiver_lib.lessons.scaling_and_memory:step_in_turn'
  settings = {log2: {'kind': kind, 'log2_bytes': log2, 'num_layers': num_layers} for log2 in steps}
  # All compile at once, on as many cores as there are; no two are timed at once.
  workers = [(log2, Worker(function, settings[log2])) for log2 in steps]
  rows = []
  for log2, (ready, *answers) in answers_in_turn(workers, steps.get).items():
    row = {'kind': kind, 'num_bytes': 2**log2} | ready
    for answer in answers:
      row |= answer
    rows.append(row | {'seconds': [answer['seconds'] for answer in answers if 'seconds' in answer]})
  return rows


def step_in_turn(kind: str, log2_bytes: int, num_layers: int) -> tuple[dict[str, Any], Call]:
  """What a process of `sweep` says of its problem before it is timed, and what is timed."""
  keep_freed_memory()  # as `fit` does
  what = problem(kind, 2**log2_bytes, num_layers=num_layers)
  call, program = what.step()
  facts: dict[str, Any] = {'temporary_megabytes': temporary_megabytes(program)}
  # How many chunks the prefix read visits depends on the times in the input, so nobody can count it by tracing.
  if kind != 'unified':
    facts |= {'operations': what.operations(), 'forward_operations': what.forward_operations()}
  return facts, call


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
  """The rows of `sweep`."""
  header = ('model', 'bytes', 'seconds a step (spread)', 'process, GB', 'temporaries, MB', 'GFLOP')
  lines = [
    (
      KINDS[row['kind']],
      f'{row["num_bytes"]:,}',
      row.get('status') or (spread(row['seconds']) if row['seconds'] else 'compiled only'),
      f'{row["peak_gigabytes"]:.2f}' if row['seconds'] else '',
      f'{row["temporary_megabytes"]:,.0f}' if 'temporary_megabytes' in row else '',
      f'{row["operations"] / 1e9:,.1f}' if 'operations' in row else '',
    )
    for row in rows
  ]
  return Table(header, lines)


def spread(values: Sequence[float]) -> str:
  """The median, and the smallest and largest."""
  return describe_spread(float(np.median(values)), min(values), max(values))


def growth(rows: Sequence[Mapping[str, Any]], what: Callable[[Mapping[str, Any]], float]) -> tuple[float, float]:
  """The power of the length that `what` of the rows grows with, and its value at one byte."""
  return exponent([row['num_bytes'] for row in rows], [what(row) for row in rows])


def fit_rows(rows: Sequence[Mapping[str, Any]], fitted_from: int) -> list[Mapping[str, Any]]:
  """The measured rows of 2^`fitted_from` bytes and more."""
  return [row for row in rows if row['seconds'] and row['num_bytes'] >= 2**fitted_from]


def predicted_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
  """Bytes -> seconds, from the longest row that ran on, by operations at the rate of that row."""
  longest = [row for row in rows if row['seconds']][-1]
  rate = longest['operations'] / np.median(longest['seconds'])
  return {
    row['num_bytes']: float(row['operations'] / rate)
    for row in rows
    if 'operations' in row and row['num_bytes'] >= longest['num_bytes']
  }


PUBLISHED_BF16 = {'A100': 312e12, 'H100': 989e12, 'H200': 989e12, 'L4': 121e12, 'L40S': 362e12, 'V100': 125e12}
"""Dense matrix operations a second in the data sheets, 16-bit with 32-bit sums; of the SXM variants."""


def published_bf16(device_kind: str) -> float | None:
  """The data sheet's rate for a device, None where it is not known."""
  words = device_kind.replace('-', ' ').split()
  return next((rate for name, rate in PUBLISHED_BF16.items() if name in words), None)


DECODE_CHUNK = 1_024
QUERIES_PER_QUESTION = 64
NEW_TOKENS = 64


def asked_model(num_bytes: int) -> PerceiverIO:
  """The byte Perceiver of the first section as a Perceiver IO: three numbers for every position that is asked for."""
  reader = PerceiverConfig.of_bytes(num_bytes)
  position = FourierFeatures(num_bands=64, max_resolution=(num_bytes,))
  config = PerceiverIOConfig(
    input_adapter=reader.input_adapter,
    num_latents=reader.num_latents,
    num_latent_channels=reader.num_latent_channels,
    num_self_attends_per_block=reader.num_self_attends_per_block,
    cross_attend=reader.cross_attend,
    self_attend=reader.self_attend,
    decoder=DecoderConfig(
      queries=PositionQueries(position=position), num_outputs=3, cross_attend=LayerConfig(num_heads=1)
    ),
  )
  return filled(abstract(PerceiverIO, config), scale=0.02)


def queries_at(num_queries: int) -> Tokens:
  return position_queries(np.linspace(-1, 1, num_queries, dtype=np.float32)[:, None], batch_size=1)


def seconds_of_questions(num_bytes: int, numbers: Sequence[int], rounds: int) -> dict[tuple[str, int], list[float]]:
  """Seconds for k questions of 64 positions each about the same bytes: {('encoded once' or 'whole calls', k): [...]}.

  The calls are made in turn.
  """
  model, tokens, queries = asked_model(num_bytes), random_bytes(num_bytes), queries_at(QUERIES_PER_QUESTION)
  encode = jax.jit(lambda model, tokens: model.encode(tokens))
  decode = jax.jit(lambda model, latents, queries: model.decode(latents, queries))
  whole = jax.jit(lambda model, tokens, queries: model(tokens, queries))

  def once(k: int) -> list[Any]:
    latents = encode(model, tokens)
    return [decode(model, latents, queries) for _ in range(k)]

  calls: dict[tuple[str, int], Callable[[], Any]] = {}
  for k in numbers:
    calls['encoded once', k] = lambda k=k: once(k)
    calls['whole calls', k] = lambda k=k: [whole(model, tokens, queries) for _ in range(k)]
  return in_turn(calls, rounds)


def decoding_megabytes(log2_queries: Sequence[int]) -> dict[str, list[float]]:
  """What the compiled decoder sets aside besides its outputs, all queries at once and in chunks. Nothing is run."""
  model = asked_model(2**10)
  latents = Tokens(values=jnp.zeros((1, model.config.num_latents, model.config.num_latent_channels)))
  sizes: dict[str, list[float]] = {}
  for name, chunk_size in (('all at once', None), (f'{DECODE_CHUNK:,} at a time', DECODE_CHUNK)):
    decode = functools.partial(PerceiverIO.decode, chunk_size=chunk_size)
    sizes[name] = [temporary_megabytes(compiled(decode, model, latents, queries_at(2**log2))) for log2 in log2_queries]
  return sizes


def tokens_a_second(
  contexts: Sequence[int], *, num_layers: int, recomputed_tokens: int, rounds: int
) -> dict[tuple[str, int], list[float]]:
  """Generated tokens a second, the reading of the prompt included: {('cached' or 'recomputed', context): [...]}.

  A Perceiver AR of 128 channels with up to 128 latents. Recomputed is the same compiled loop with a window
  that has no room, so that every token reads its whole context again.
  """
  num_latents = min(128, min(contexts))
  config = PerceiverARConfig.of_bytes(
    num_channels=128, num_latents=num_latents, num_self_attends=num_layers, num_heads=4, vocabulary_size=NUM_IDS
  )
  model = filled(abstract(PerceiverAR, config), scale=0.02)
  calls, amounts = {}, {}
  for context in contexts:
    prompt = np.random.default_rng(0).integers(0, NUM_IDS, (1, context - num_latents // 2)).astype(np.int32)
    for name, start, amount in (
      ('cached', num_latents // 2, min(NEW_TOKENS, num_latents // 2)),
      ('recomputed', num_latents, recomputed_tokens),
    ):
      window = LatentWindow(context_length=context, num_latents=num_latents, num_start_latents=start)
      calls[name, context] = lambda prompt=prompt, window=window, amount=amount: generate(
        model, prompt, window=window, num_tokens=amount, sampler=GREEDY
      )
      amounts[name, context] = amount
  seconds = in_turn(calls, rounds)
  return {key: [amounts[key] / one for one in values] for key, values in seconds.items()}
