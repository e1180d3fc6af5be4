"""What each byte costs, for notebook 10: one training step of several models at growing lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.experiments.measuring import Call, compiled, exponent, temporary_megabytes
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.wording import describe_spread
from perceiver_lib.experiments.workers import Worker, answers_in_turn
from perceiver_lib.flops import count_flops
from perceiver_lib.lessons import unified_bytes
from perceiver_lib.lessons.tour import random_bytes
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import UnifiedPerceiver
from perceiver_lib.parameters import abstract, filled
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRecipe:
  """Settings of one profile.

  Attributes:
    steps: kind -> log2 of the input bytes -> timed steps. 0 = compiled, never run.
    num_layers: of all models at every length; generation uses half as many.
    fitted_from: log2 of the shortest input in the fits.
    sweep_bytes: log2 of the input bytes at which latents and layers are varied, sweep_latents and sweep_layers.
    sweep_rounds: timed steps of each variant, in turn.
    asked_bytes: log2 of the input bytes that are encoded once; question_numbers: how many calls ask about them.
    decoded: log2 of the numbers of output queries that are decoded.
    contexts: of generation; recomputed_tokens: how many are generated without a cache.
    bench_cases: of `python -m perceiver_lib bench`, measured in the same run; bench_rounds: timed calls of each.
  """

  steps: Mapping[str, Mapping[int, int]]
  fitted_from: int
  num_layers: int = NUM_LAYERS
  sweep_bytes: int
  sweep_latents: tuple[int, ...]
  sweep_layers: tuple[int, ...]
  sweep_rounds: int
  asked_bytes: int
  question_numbers: tuple[int, ...]
  decoded: tuple[int, ...]
  contexts: tuple[int, ...]
  recomputed_tokens: int
  bench_cases: tuple[str, ...]
  bench_rounds: int


RECIPES = {
  'smoke': ScalingRecipe(
    steps={'streamed': {10: 2, 11: 1}, 'transformer': {8: 1, 9: 0}},
    fitted_from=10, num_layers=1,
    sweep_bytes=8, sweep_latents=(16, 32), sweep_layers=(1,), sweep_rounds=1,
    asked_bytes=8, question_numbers=(1, 2), decoded=(12,),
    contexts=(16,), recomputed_tokens=2,
    bench_cases=(), bench_rounds=1,
  ),
  'demo': ScalingRecipe(
    steps={
      'streamed': {10: 3, 14: 3, 16: 3, 18: 2, 20: 1},
      'dense': {12: 3, 14: 3, 16: 1, 20: 0},
      'ar': {14: 2, 16: 1},
      'unified': {14: 2, 18: 1},
      'transformer': {10: 2, 12: 1, 20: 0},
    },
    fitted_from=16,
    sweep_bytes=14, sweep_latents=(64, 256, 512), sweep_layers=(1, 6, 12), sweep_rounds=3,
    asked_bytes=14, question_numbers=(1, 4, 16), decoded=(10, 14, 18),
    contexts=(256, 1_024, 4_096), recomputed_tokens=16,
    bench_cases=('wide-16k-train', 'narrow-16k-train'), bench_rounds=3,
  ),
}  # fmt: skip
RECIPES['full'] = dataclasses.replace(
  RECIPES['demo'],
  steps={
    'streamed': {log2: 5 for log2 in range(10, 23)},
    'dense': {log2: 5 for log2 in range(10, 17)} | {20: 0},
    'ar': {log2: 5 for log2 in range(12, 21)},
    'unified': {log2: 5 for log2 in range(12, 23)},
    'transformer': {log2: 3 for log2 in range(10, 15)} | {16: 0, 20: 0},
  },
)


# One training step.


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
      unified_bytes.byte_model(num_bytes, width=WIDTH), num_self_attends_per_block=num_layers
    )
    loss = lambda model, tokens: unified_bytes.loss_of(model, tokens, 'prefix')  # noqa: E731
    return Problem(abstract(UnifiedPerceiver, config), unified_bytes.byte_tokens(num_bytes), loss)
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
  function = 'perceiver_lib.lessons.scaling:step_in_turn'
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
