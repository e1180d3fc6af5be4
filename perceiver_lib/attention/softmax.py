"""The partial softmax: what is known of a softmax before all keys were seen, and everything that merges or masks it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.products import product
from perceiver_lib.tokens import may_attend

READ = 'read'
"""The name of what an attention with a backward pass of its own keeps: its output and its log-sum-exp."""

KEPT_BY_A_SCAN = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(READ)
)
"""What a scan over layers keeps for its backward pass: products and reads. What lies between is made again, as XLA does
in a loop of layers; a scan left to itself keeps all of it.
"""

MASKED_LOGIT = -1e30
"""A finite fill: -inf gives finite outputs but NaN gradients where a whole row is masked."""


class PartialSoftmax(NamedTuple):
  """An unfinished softmax-weighted sum; two of them over disjoint keys combine exactly.

  Axes are `[b, h, i]`, or `[b, g, h, i]` where keys are summed up by groups, such as timesteps.
  """

  maximum: Float[Array, '*b i']
  denominator: Float[Array, '*b i']
  numerator: Float[Array, '*b i v']

  @classmethod
  def empty(cls, shape: tuple[int, ...], num_value_channels: int, dtype: DTypeLike) -> PartialSoftmax:
    """Nothing read yet; `dtype` is that of the logits to come."""
    denominator, numerator = jnp.zeros(shape, dtype), jnp.zeros((*shape, num_value_channels), dtype)
    return cls(jnp.full_like(denominator, MASKED_LOGIT), denominator, numerator)

  def fold(
    self,
    logits: Float[Array, 'b h i j'],
    allowed: Bool[Array, 'b 1 #i j'] | None,
    values: Float[Array, 'b h j v'],
  ) -> PartialSoftmax:
    """With further keys."""
    logits = _mask_logits(logits, allowed)
    # The maximum cancels in the result: without stop_gradient its gradient would only cost memory and rounding.
    maximum = jax.lax.stop_gradient(jnp.maximum(self.maximum, jnp.max(logits, axis=-1)))
    weights = _mask_weights(jnp.exp(logits - maximum[..., None]), allowed)
    correction = jnp.exp(self.maximum - maximum)
    summed = product('bhij,bhjv->bhiv', weights, without_nan(values, allowed))
    return PartialSoftmax(
      maximum,
      self.denominator * correction + jnp.sum(weights, axis=-1),
      self.numerator * correction[..., None] + summed,
    )

  def output(self) -> Float[Array, '*b i v']:
    """The weighted mean of the values; exactly zero for rows that may attend to nothing."""
    return self.numerator / jnp.where(self.denominator > 0, self.denominator, 1.0)[..., None]

  def log_sum_exp(self) -> Float[Array, '*b i']:
    return self.maximum + jnp.log(jnp.where(self.denominator > 0, self.denominator, 1.0))

  def combined(self, other: PartialSoftmax) -> PartialSoftmax:
    """The softmax over the keys of both."""
    maximum = jax.lax.stop_gradient(jnp.maximum(self.maximum, other.maximum))
    mine, others = jnp.exp(self.maximum - maximum), jnp.exp(other.maximum - maximum)
    return PartialSoftmax(
      maximum,
      self.denominator * mine + other.denominator * others,
      self.numerator * mine[..., None] + other.numerator * others[..., None],
    )

  def groups(self, part: slice) -> PartialSoftmax:
    """Some of the groups."""
    return jax.tree.map(lambda x: x[:, part], self)

  def as_group(self) -> PartialSoftmax:
    """As the only group."""
    return jax.tree.map(lambda x: x[:, None], self)

  def beside(self, *others: PartialSoftmax) -> PartialSoftmax:
    """The groups of all, side by side."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), self, *others)

  def emptied(self) -> PartialSoftmax:
    """As many groups, in which nothing was read."""
    zero = jax.tree.map(jnp.zeros_like, self)
    return zero._replace(maximum=jnp.full_like(self.maximum, MASKED_LOGIT))

  def total(self) -> PartialSoftmax:
    """One softmax `[b, h, i]` over the keys of all groups."""
    maximum = jnp.max(self.maximum, axis=1)
    weight = jnp.exp(self.maximum - maximum[:, None])
    return PartialSoftmax(
      maximum,
      jnp.sum(self.denominator * weight, axis=1),
      jnp.sum(self.numerator * weight[..., None], axis=1),
    )

  def prefixes(self) -> PartialSoftmax:
    """Each group with all groups before it."""
    return jax.lax.associative_scan(PartialSoftmax.combined, self, axis=1)

  def windows(self, size: int) -> PartialSoftmax:
    """Each group with the `size - 1` groups before it, as a sum of powers of two, each made from two halves."""
    total, covered, power, length = None, 0, self, 1
    while length <= size:
      if size & length:
        part = power._delayed(covered)
        total, covered = part if total is None else total.combined(part), covered + length
      power, length = power.combined(power._delayed(length)), 2 * length
    return total

  def _delayed(self, steps: int) -> PartialSoftmax:
    """Moved `steps` groups later, with nothing read before."""
    kept = max(self.maximum.shape[1] - steps, 0)
    return self.emptied().groups(slice(kept, None)).beside(self.groups(slice(kept)))


def attention_weights(
  logits: Float[Array, 'b h i j'], allowed: Bool[Array, 'b 1 #i j'] | None, log_sum_exp: Float[Array, 'b h i']
) -> Float[Array, 'b h i j']:
  """exp(logits - what is known of the whole softmax), zero where not allowed."""
  return _mask_weights(jnp.exp(_mask_logits(logits, allowed) - log_sum_exp[..., None]), allowed)


def _mask_logits(logits: Float[Array, 'b h i j'], allowed: Bool[Array, 'b 1 #i j'] | None) -> Float[Array, 'b h i j']:
  return logits if allowed is None else jnp.where(allowed, logits, MASKED_LOGIT)


def _mask_weights(weights: Float[Array, 'b h i j'], allowed: Bool[Array, 'b 1 #i j'] | None) -> Float[Array, 'b h i j']:
  """Masks again after the exponential: in a fully masked row every masked weight would otherwise be exp(0)."""
  return weights if allowed is None else jnp.where(allowed, weights, 0.0)


def allowed_pairs(
  query_time: Int[Array, 'b i'] | None, key_time: Int[Array, 'b j'] | None, key_valid: Bool[Array, 'b j'] | None
) -> Bool[Array, 'b 1 #i j'] | None:
  """The rule of `tokens.may_attend` with an axis for the heads."""
  mask = may_attend(query_time, key_time, key_valid)
  return None if mask is None else mask[:, None]


def scaled_logits(q: Float[Array, 'b h i k'], k: Float[Array, 'b h j k']) -> Float[Array, 'b h i j']:
  return product('bhik,bhjk->bhij', q, k) * (q.shape[-1] ** -0.5)


def chunk_gradients(
  q: Float[Array, 'b h i k'],
  k: Float[Array, 'b h j k'],
  v: Float[Array, 'b h j v'],
  *,
  allowed: Bool[Array, 'b 1 #i j'] | None,
  log_sum_exp: Float[Array, 'b h i'],
  d_output: Float[Array, 'b h i v'],
  shift: Float[Array, 'b h i'],
) -> tuple[Float[Array, 'b h i k'], Float[Array, 'b h j k'], Float[Array, 'b h j v']]:
  """What a chunk of keys adds to the gradient of its queries, and those of keys and values, in the type of sums.

  Args:
    log_sum_exp: what is known of the whole softmax.
    d_output: gradient of the weighted sum of values.
    shift: subtracted from the gradient of every weight, for the softmax's normalisation.
  """
  weights = attention_weights(scaled_logits(q, k), allowed, log_sum_exp)
  d_output = d_output.astype(v.dtype)
  d_weights = product('bhiv,bhjv->bhij', d_output, without_nan(v, allowed))
  d_logits = weights * (d_weights - shift[..., None]) * (q.shape[-1] ** -0.5)
  d_q = product('bhij,bhjk->bhik', d_logits, without_nan(k, allowed))
  # The small operands are transposed: on CPU a product with a transposed [i, j] runs at 40 % of the others' rate.
  d_k = product('bhki,bhij->bhkj', rearrange(q, 'b h i k -> b h k i'), d_logits)
  d_v = product('bhvi,bhij->bhvj', rearrange(d_output, 'b h i v -> b h v i'), weights)
  return d_q, rearrange(d_k, 'b h k j -> b h j k'), rearrange(d_v, 'b h v j -> b h j v')


def without_nan(array: Float[Array, 'b h j c'], allowed: Bool[Array, 'b 1 #i j'] | None) -> Float[Array, 'b h j c']:
  """Keeps NaN in masked keys out of the sums, where 0 x NaN would carry it; allowed NaN still comes by the logits."""
  return array if allowed is None else jnp.where(jnp.isfinite(array), array, jnp.zeros((), array.dtype))
