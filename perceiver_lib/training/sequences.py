"""Training next-token models: shifted targets, crops, and the loss on latents.

Only the last inputs of a row have latents, hence losses. Crops that all end where the data ends would never put a
latent on an early position; so rows end at random places (perceiver-ar, flaxformer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.models.last_inputs import rank_from_end, validity
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


def examples_of(batch: Mapping[str, Array | np.ndarray]) -> NextTokens:
  """`next_tokens` of a batch of 'ids', with its 'valid', 'scored' and 'position' where it has them."""
  ids, valid, scored, position = (
    jnp.asarray(batch[name]) if name in batch else None for name in ('ids', 'valid', 'scored', 'position')
  )
  return next_tokens(ids, valid=valid, label_mask=scored, position=position)


def keep_first(examples: NextTokens, count: Int[Array, ''] | Int[Array, 'b 1'] | int) -> NextTokens:
  """Hides all but the first `count` columns of a row, so that it ends there."""
  return _keep(examples, jnp.arange(examples.targets.shape[1], dtype=jnp.int32)[None] < count)


def keep_last(examples: NextTokens, count: Int[Array, ''] | Int[Array, 'b 1'] | int) -> NextTokens:
  """Hides all but the last `count` inputs of a row. With a latent on each of them nothing is left but a Transformer.

  A Perceiver AR whose context is its latents is a causal Transformer of one layer more than its self-attends.
  """
  return _keep(examples, rank_from_end(validity(examples.inputs)) < count)


def _keep(examples: NextTokens, kept: Bool[Array, '#b m']) -> NextTokens:
  valid = validity(examples.inputs) & kept
  inputs = dataclasses.replace(examples.inputs, valid=valid)
  return dataclasses.replace(examples, inputs=inputs, scored=examples.scored & valid)


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
  logits: Tokens, examples: NextTokens, *, z_loss: float = 0.0
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Mean loss in nats over the scored latents of a batch, and {'nats_per_token', 'accuracy'} without the extra terms.

  Args:
    logits: what `PerceiverAR` returns for `examples.inputs`.
    z_loss: weight of log(Z)^2, 1e-4 in perceiver-ar and flaxformer. There the loss is a sum over latents and batch;
      the mean leaves a step of Adam the same.
  """
  targets, scored = latent_targets(examples, logits)
  loss = cross_entropy(logits.values, targets, valid=scored, z_loss=z_loss)
  measured = {
    'nats_per_token': cross_entropy(logits.values, targets, valid=scored),
    'accuracy': metrics.accuracy(logits.values, targets, valid=scored),
  }
  return loss, measured
