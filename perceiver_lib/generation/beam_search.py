"""Beam search over any model with a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from perceiver_lib.tokens import sum_type


class Beams(NamedTuple):
  """Attributes: `tokens`, best beam first, zeros behind the end; `log_probabilities` of what stands before it."""

  tokens: Int[Array, 'b k t']
  log_probabilities: Float[Array, 'b k']


def beam_search(
  step: Callable[[Any, Int[Array, 'r']], tuple[Any, Float[Array, 'r e']]],
  cache: Any,
  logits: Float[Array, 'b e'],
  *,
  num_beams: int,
  num_tokens: int,
  end_token: int,
) -> Beams:
  """The likeliest continuations that a beam of `num_beams` finds; one scan, to be called inside jit.

  Args:
    step: appends one token to each of `b x num_beams` rows: `(cache, tokens) -> (cache, logits)`.
    cache: for b rows after their prompts. Arrays lead with the rows, or with rows and more in one axis such as
      `(b h)`; scalars are shared by all rows.
    logits: of the token behind the prompts.
    num_beams: kept after each token.
    num_tokens: most new tokens; `step` is called one time fewer.
    end_token: ends a beam, whose probability includes it.
  """
  b, num_outputs = logits.shape
  batch = jnp.arange(b)[:, None]

  def rows(tree: Any, num_rows: int, index: Int[Array, 'r']) -> Any:
    def of(leaf: Array) -> Array:
      by_row = leaf.reshape(num_rows, -1, *leaf.shape[1:])[index]
      return by_row.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else of(leaf), tree)

  def follow(cache: Any, parent: Int[Array, 'b k']) -> Any:
    return rows(cache, b * num_beams, (batch * num_beams + parent).reshape(-1))

  def select(beams: Beams, finished: Array, logits: Array, place: Array) -> tuple[Beams, Array, Array]:
    log_p = jax.nn.log_softmax(logits.astype(sum_type(logits)), axis=-1).reshape(b, -1, num_outputs)
    only_zero = jnp.where(jnp.arange(num_outputs) == 0, 0.0, -jnp.inf)
    log_p = jnp.where(finished[..., None], only_zero[None, None], log_p)
    total = beams.log_probabilities[..., None] + log_p
    best, flat = jax.lax.top_k(total.reshape(b, -1), num_beams)
    parent, token = flat // num_outputs, flat % num_outputs
    tokens = jax.lax.dynamic_update_slice_in_dim(
      beams.tokens[batch, parent], token[..., None].astype(jnp.int32), place, axis=2
    )
    return Beams(tokens, best), finished[batch, parent] | (token == end_token), parent

  # One live beam at first: equal beams would fill the search with copies.
  live = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf)
  beams = Beams(
    tokens=jnp.zeros((b, num_beams, num_tokens), jnp.int32),
    log_probabilities=jnp.broadcast_to(live, (b, num_beams)),
  )
  finished = jnp.zeros((b, num_beams), bool)
  cache, logits = rows((cache, logits), b, jnp.repeat(jnp.arange(b), num_beams))
  beams, finished, parent = select(beams, finished, logits, jnp.int32(0))
  cache = follow(cache, parent)

  def grow(carry: tuple, place: Array) -> tuple[tuple, None]:
    beams, finished, cache = carry
    newest = jax.lax.dynamic_slice_in_dim(beams.tokens, place - 1, 1, axis=2)
    cache, logits = step(cache, newest.reshape(-1))
    beams, finished, parent = select(beams, finished, logits, place)
    return (beams, finished, follow(cache, parent)), None

  (beams, _, _), _ = jax.lax.scan(grow, (beams, finished, cache), jnp.arange(1, num_tokens))
  return beams
