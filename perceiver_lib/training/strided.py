"""Documents longer than a context, scored in strided windows: every token once, with at least a stated context."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from perceiver_lib.modalities.text_context import with_previous
from perceiver_lib.tokens import Tokens
from perceiver_lib.training import metrics
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.sequences import at_latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class StridedWindows:
  """Windows over whole documents that score every token exactly once, each with all the context there is for it.

  Window k scores the `stride` tokens from k x stride on and reads the newest `context_length` inputs before their last.
  A small stride gives each scored token much latent context and costs many windows; the loss falls with it and
  converges, so a loss is reported beside its stride.

  Attributes:
    documents: one array of ids each.
    context_length: inputs a window, with the begin token.
    stride: tokens scored a window; at most the latents of the model that reads them.
    begin_token: stands before each document, so that its first token is scored too.
  """

  documents: Sequence[Int[np.ndarray, '_l']]
  context_length: int
  stride: int
  begin_token: int

  def __post_init__(self):
    if not 1 <= self.stride <= self.context_length:
      raise ValueError(f'A stride must be 1 to the context length, {self.context_length}; got {self.stride}.')
    if not sum(map(len, self.documents)):
      raise ValueError('Strided evaluation needs a document with at least one token; all of these are empty.')

  @property
  def num_tokens(self) -> int:
    return sum(map(len, self.documents))

  def __len__(self) -> int:
    return sum(-(-len(document) // self.stride) for document in self.documents)

  def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of 'inputs', 'targets', 'valid' and 'scored', `[batch_size, context_length]`, the last one filled up."""
    windows = ((d, k) for d, document in enumerate(self.documents) for k in range(0, len(document), self.stride))
    rows: list[tuple[int, int]] = []
    for window in windows:
      rows.append(window)
      if len(rows) == batch_size:
        yield self._batch(rows, batch_size)
        rows = []
    if rows:
      yield self._batch(rows, batch_size)

  def _batch(self, rows: list[tuple[int, int]], batch_size: int) -> dict[str, np.ndarray]:
    shape = (batch_size, self.context_length)
    batch = {name: np.zeros(shape, np.int32) for name in ('inputs', 'targets')}
    batch |= {name: np.zeros(shape, bool) for name in ('valid', 'scored')}
    for row, (number, first) in enumerate(rows):
      document = self.documents[number]
      stop = min(first + self.stride, len(document))
      start = max(stop - self.context_length, 0)
      size = stop - start
      before = self.begin_token if start == 0 else document[start - 1]
      batch['inputs'][row, :size] = np.concatenate([[before], document[start : stop - 1]])
      batch['targets'][row, :size] = document[start:stop]
      batch['valid'][row, :size] = True
      batch['scored'][row, first - start : size] = True
    return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class StridedScore:
  """Attributes: `nats_per_token` over `num_tokens` tokens, at this `stride`, context length and number of latents."""

  nats_per_token: float
  num_tokens: int
  stride: int
  context_length: int
  num_latents: int

  @property
  def bits_per_byte(self) -> float:
    """For models of bytes."""
    return metrics.bits_per_byte(self.nats_per_token)

  @property
  def perplexity(self) -> float:
    return metrics.perplexity(self.nats_per_token)


def evaluate_strided(
  model: nnx.Module, windows: StridedWindows, *, num_latents: int, num_ids: int = 1, batch_size: int = 16
) -> StridedScore:
  """The mean loss of a Perceiver AR over whole documents, whose tokens carry `num_ids` ids (`modalities.text_context`).

  Raises:
    ValueError: if the stride exceeds the latents: tokens would be scored by no latent.
  """
  if windows.stride > num_latents:
    raise ValueError(f'The stride must be at most the {num_latents} latents, or bytes are lost; got {windows.stride}.')
  means = metrics.evaluate_dataset(model, _scored_nats(num_latents, num_ids), windows.batches(batch_size))
  return StridedScore(
    nats_per_token=means['nats_per_token'],
    num_tokens=windows.num_tokens,
    stride=windows.stride,
    context_length=windows.context_length,
    num_latents=num_latents,
  )


@functools.lru_cache(maxsize=16)
def _scored_nats(num_latents: int, num_ids: int):
  def scored_nats(model: Any, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    inputs = Tokens(values=batch['inputs'], valid=batch['valid'])
    logits = model(inputs if num_ids == 1 else with_previous(inputs, num_ids), num_latents=num_latents)
    targets = at_latents(batch['targets'], logits)
    scored = at_latents(batch['scored'], logits) & logits.valid
    return {'nats_per_token': (cross_entropy(logits.values, targets, valid=scored, reduction='none'), scored)}

  return scored_nats
