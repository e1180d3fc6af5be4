"""Training and measuring next-token models: shifted targets, crops, the loss on latents, and strided evaluation.

Only the last inputs of a row have latents, hence losses. Crops that all end where the data ends would never put a
latent on an early position; so rows end at random places (perceiver-ar, flaxformer).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.tokens import Tokens
from perceiver_lib.training import metrics
from perceiver_lib.training.losses import cross_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokens:
  """Inputs, and for each of them the token that follows.

  Attributes:
    inputs: with the ids as values. Only inputs that have a target are valid, so that no latent is spent on the end.
    targets: the id behind each input.
    scored: where that target exists and counts in the loss.
  """

  inputs: Tokens
  targets: Int[Array, 'b m']
  scored: Bool[Array, 'b m']


def next_tokens(
  ids: Int[Array, 'b l'],
  *,
  valid: Bool[Array, 'b l'] | None = None,
  label_mask: Bool[Array, 'b l'] | None = None,
  position: Int[Array, 'b l p'] | None = None,
  begin_token: int | None = None,
) -> NextTokens:
  """Shifts a batch of sequences against itself: inputs a b c, targets b c d.

  Args:
    ids: sequences, with padding on either side.
    valid: False = padding, None = none.
    label_mask: which ids count as targets, None = all that are valid.
    position: position ids from data, of each id as an input.
    begin_token: put before every row, so that its first id is a target too; refused with positions or where rows are
      padded on the left (it would stand apart from the text), which JAX can only tell outside of jit.

  Raises:
    ValueError: for shapes that do not fit, or a begin token beside positions.
  """
  for name, mask in (('valid', valid), ('label_mask', label_mask)):
    if mask is not None and mask.shape != ids.shape:
      raise ValueError(f'{name} must have the shape of the ids, {ids.shape}; got {mask.shape}.')
  valid = jnp.ones(ids.shape, bool) if valid is None else valid
  scored = valid if label_mask is None else valid & label_mask
  if begin_token is None:
    inputs = Tokens(
      values=ids[:, :-1],
      valid=valid[:, :-1] & valid[:, 1:],
      position=None if position is None else position[:, :-1],
    ).checked('ids')
    return NextTokens(inputs=inputs, targets=ids[:, 1:], scored=scored[:, 1:] & valid[:, :-1])
  if position is not None:
    raise ValueError('A begin token has no position of its own; put it into ids and position instead.')
  if not isinstance(valid, jax.core.Tracer) and bool((~valid[:, 0] & valid.any(axis=1)).any()):
    raise ValueError('A begin token stands at the left end; pad the rows on the right.')
  first = jnp.full((ids.shape[0], 1), begin_token, ids.dtype)
  inputs = Tokens(values=jnp.concatenate([first, ids[:, :-1]], axis=1), valid=valid)
  return NextTokens(inputs=inputs, targets=ids, scored=scored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullLatents:
  """Crops that have an input for every latent and at least one scored target, and all before them as a prefix.

  Every latent has work in every crop; the first and the last positions get a latent less often (flaxformer
  `t5_models.py`, FULL_LATENTS_WITH_PREFIX).
  """

  num_latents: int

  def shortest(self, scored: Bool[Array, 'b m']) -> Int[Array, 'b']:
    return jnp.maximum(jnp.argmax(scored, axis=1).astype(jnp.int32) + 1, self.num_latents)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimumCrop:
  """Crops of any length from `length` inputs on (perceiver-ar `minimum_crop_length`).

  Below the number of latents, the short crops leave some latents without an input, and early positions get as many
  latents as the rest.
  """

  length: int

  def shortest(self, scored: Bool[Array, 'b m']) -> Int[Array, 'b']:
    return jnp.full(scored.shape[:1], self.length, jnp.int32)


def random_crop(examples: NextTokens, policy: FullLatents | MinimumCrop, key: Array) -> NextTokens:
  """Lets each row end at a random place, equally likely from the policy's shortest crop to the row's last input.

  A crop marks what is behind its end as invalid; shapes stay. Rows shorter than the shortest crop stay whole.
  """
  valid = jnp.ones(examples.targets.shape, bool) if examples.inputs.valid is None else examples.inputs.valid
  count = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
  total = count[:, -1]
  # The policy counts inputs; padding on the left shifts a row's first scored target to a later column.
  scored_by_count = (
    jnp.zeros_like(examples.scored)
    .at[jnp.arange(len(count))[:, None], jnp.where(valid, count - 1, count.shape[1])]
    .set(examples.scored, mode='drop')
  )
  shortest = jnp.clip(policy.shortest(scored_by_count), 1, jnp.maximum(total, 1))
  end = jax.random.randint(key, total.shape, shortest, jnp.maximum(total, shortest) + 1)
  kept = valid & (count <= end[:, None])
  inputs = dataclasses.replace(examples.inputs, valid=kept)
  return dataclasses.replace(examples, inputs=inputs, scored=examples.scored & kept)


def at_latents(array: Array, latents: Tokens) -> Array:
  """Entries of `[b, m]` at the inputs that the latents sit on, `[b, n]`; where there is no latent, the first entry."""
  return jnp.take_along_axis(array, jnp.maximum(latents.time, 0), axis=1)


def latent_targets(examples: NextTokens, latents: Tokens) -> tuple[Int[Array, 'b n'], Bool[Array, 'b n']]:
  """Target of each latent, and whether it is scored."""
  return at_latents(examples.targets, latents), at_latents(examples.scored, latents) & latents.valid


def next_token_loss(
  logits: Tokens, examples: NextTokens, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Mean loss in nats over the scored latents of a batch, and {'nats_per_token', 'accuracy'} without the extra terms.

  Args:
    logits: what `PerceiverAR` returns for `examples.inputs`.
    z_loss: weight of log(Z)^2, 1e-4 in perceiver-ar and flaxformer. There the loss is a sum over latents and batch;
      the mean leaves a step of Adam the same.
  """
  targets, scored = latent_targets(examples, logits)
  loss = cross_entropy(logits.values, targets, valid=scored, z_loss=z_loss, label_smoothing=label_smoothing)
  measured = {
    'nats_per_token': cross_entropy(logits.values, targets, valid=scored),
    'accuracy': metrics.accuracy(logits.values, targets, valid=scored),
  }
  return loss, measured


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
  model: nnx.Module, windows: StridedWindows, *, num_latents: int, batch_size: int = 16
) -> StridedScore:
  """The mean loss of a Perceiver AR over whole documents.

  Raises:
    ValueError: if the stride exceeds the latents: tokens would be scored by no latent.
  """
  if windows.stride > num_latents:
    raise ValueError(f'The stride must be at most the {num_latents} latents, or bytes are lost; got {windows.stride}.')
  means = metrics.evaluate_dataset(model, _scored_nats(num_latents), windows.batches(batch_size))
  return StridedScore(
    nats_per_token=means['nats_per_token'],
    num_tokens=windows.num_tokens,
    stride=windows.stride,
    context_length=windows.context_length,
    num_latents=num_latents,
  )


@functools.lru_cache(maxsize=16)
def _scored_nats(num_latents: int):
  def scored_nats(model: Any, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    logits = model(Tokens(values=batch['inputs'], valid=batch['valid']), num_latents=num_latents)
    targets = at_latents(batch['targets'], logits)
    scored = at_latents(batch['scored'], logits) & logits.valid
    return {'nats_per_token': (cross_entropy(logits.values, targets, valid=scored, reduction='none'), scored)}

  return scored_nats


def continuation_log_probability(
  model: nnx.Module,
  prompts: Sequence[Sequence[int]],
  continuations: Sequence[Sequence[int]],
  *,
  num_latents: int,
) -> Float[Array, 'b']:
  """log p(continuation | prompt) in nats, a row each.

  Every token of a continuation is predicted by a latent; latents beyond those sit on the end of the prompt. More
  latents mean more depth behind each prediction, so compare candidates at one number.

  Raises:
    ValueError: for an empty prompt or continuation, or one that is longer than the latents.
  """
  if len(prompts) != len(continuations) or not all(map(len, prompts)) or not all(map(len, continuations)):
    raise ValueError('Each prompt needs its continuation, and both at least one token.')
  longest = max(map(len, continuations))
  if longest > num_latents:
    raise ValueError(f'A continuation of {longest} tokens needs as many latents; got {num_latents}.')
  rows = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
  length = max(map(len, rows))
  ids, valid, labels = np.zeros((len(rows), length), np.int32), *np.zeros((2, len(rows), length), bool)
  for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
    ids[number, : len(row)], valid[number, : len(row)] = row, True
    labels[number, len(prompt) : len(row)] = True
  examples = next_tokens(jnp.asarray(ids), valid=jnp.asarray(valid), label_mask=jnp.asarray(labels))
  graphdef, params = nnx.split(model)
  return _log_probability(params, examples, graphdef=graphdef, num_latents=num_latents)


@functools.partial(jax.jit, static_argnames=('graphdef', 'num_latents'))
def _log_probability(params: Any, examples: NextTokens, *, graphdef: Any, num_latents: int) -> Float[Array, 'b']:
  logits = nnx.merge(graphdef, params)(examples.inputs, num_latents=num_latents)
  targets, scored = latent_targets(examples, logits)
  return -cross_entropy(logits.values, targets, valid=scored, reduction='none').sum(axis=1)
