"""Self-attention of T x S latents that computes only the pairs the rule allows, and the stack of layers made of it.

Latents lie timestep by timestep, so the rule is a lower triangle of blocks: a scan runs over its block pairs, forward
and backward, and keeps nothing but the output and the log-sum-exp. The published sketch of the unified model built the
whole (T S) x (T S) matrix, ran out of memory, and left the latents unmasked, which lets the future into the past.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.attend import KeyValueReader, choose_chunk_size
from perceiver_lib.attention.capture import named, recorder, recording
from perceiver_lib.attention.softmax import (
  PartialSoftmax,
  allowed_pairs,
  chunk_gradients,
  mask_logits,
  mask_weights,
  scaled_logits,
)
from perceiver_lib.blocks import LayerConfig, SelfAttention
from perceiver_lib.tokens import Tokens

BLOCK_ROWS = 256
"""Latents a block, in whole timesteps; larger blocks compute more of the forbidden half on the diagonal."""

LatentAttention = Literal['full', 'axial']


def block_causal_attend(
  q: Float[Array, 'b h n k'],
  k: Float[Array, 'b h n k'],
  v: Float[Array, 'b h n v'],
  *,
  time: Int[Array, 'b n'],
  valid: Bool[Array, 'b n'] | None = None,
  num_latents_per_timestep: int,
  block_rows: int | None = None,
) -> Float[Array, 'b h n v']:
  """Equals `attention.attend` with these times, in outputs and gradients, at half the work and O(n) memory.

  Args:
    time: of every latent; S neighbours share a timestep, and times rise from one timestep to the next.
    valid: False = padding, whose keys and values may hold anything.
    num_latents_per_timestep: S.
    block_rows: latents a block, rounded to whole timesteps; None = `BLOCK_ROWS`.
  """
  n, s = q.shape[2], num_latents_per_timestep
  if n % s:
    raise ValueError(f'Latents must be whole timesteps of {s}; got {n} latents.')
  block = s * min(max((block_rows or BLOCK_ROWS) // s, 1), n // s)
  if valid is not None:
    exists = valid[:, None, :, None]
    k, v = (jnp.where(exists, array, jnp.zeros((), array.dtype)) for array in (k, v))
  if padding := -n % block:
    valid = jnp.ones(time.shape, bool) if valid is None else valid
    time, valid = (jnp.pad(array, ((0, 0), (0, padding))) for array in (time, valid))
    q, k, v = (jnp.pad(array, ((0, 0), (0, 0), (0, padding), (0, 0))) for array in (q, k, v))
  return _triangle(q, k, v, time, valid, block)[0][:, :, :n].astype(v.dtype)


def _block_pairs(num_rows: int, block: int) -> Int[np.ndarray, 'c 2']:
  """Query block and key block of the lower triangle: 0 0, 1 0, 1 1, 2 0, ..."""
  return np.stack(np.tril_indices(num_rows // block), axis=1).astype(np.int32)


def _part(array: Array, index: Array, block: int, axis: int = 2) -> Array:
  return jax.lax.dynamic_slice_in_dim(array, index * block, block, axis=axis)


def _put(array: Array, part: Array, index: Array, block: int) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(array, part, index * block, axis=2)


def _allowed(time: Array, valid: Array | None, i: Array, j: Array, block: int) -> Bool[Array, 'b 1 i j']:
  key_valid = None if valid is None else _part(valid, j, block, axis=1)
  return allowed_pairs(_part(time, i, block, axis=1), _part(time, j, block, axis=1), key_valid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _triangle(q: Array, k: Array, v: Array, time: Array, valid: Array | None, block: int) -> tuple[Array, Array]:
  def fold(state: PartialSoftmax, pair: Array) -> tuple[PartialSoftmax, None]:
    i, j = pair
    part = jax.tree.map(lambda x: _part(x, i, block), state)
    logits = scaled_logits(_part(q, i, block), _part(k, j, block))
    part = part.fold(logits, _allowed(time, valid, i, j, block), _part(v, j, block))
    return jax.tree.map(lambda x, new: _put(x, new, i, block), state, part), None

  state = PartialSoftmax.empty(q.shape[:3], v.shape[-1])
  state, _ = jax.lax.scan(fold, state, _block_pairs(q.shape[2], block))
  return state.output(), state.log_sum_exp()


def _forward(q, k, v, time, valid, block):
  output, log_sum_exp = _triangle(q, k, v, time, valid, block)
  return (output, log_sum_exp), (q, k, v, time, valid, output, log_sum_exp)


def _backward(block, residuals, cotangents):
  q, k, v, time, valid, output, log_sum_exp = residuals
  d_output = cotangents[0].astype(jnp.float32)
  correction = jnp.sum(d_output * output, axis=-1)

  def step(carry, pair):
    i, j = pair
    d_q, d_k, d_v = carry
    q_i, d_i, k_j, v_j = _part(q, i, block), _part(d_output, i, block), _part(k, j, block), _part(v, j, block)
    allowed = _allowed(time, valid, i, j, block)
    logits = mask_logits(scaled_logits(q_i, k_j), allowed)
    weights = mask_weights(jnp.exp(logits - _part(log_sum_exp, i, block)[..., None]), allowed)
    shift = _part(correction, i, block)[..., None]
    more_q, more_k, more_v = chunk_gradients(q_i, k_j, v_j, weights=weights, d_output=d_i, shift=shift, allowed=allowed)
    d_q = _put(d_q, _part(d_q, i, block) + more_q, i, block)
    d_k = _put(d_k, _part(d_k, j, block) + more_k, j, block)
    return (d_q, d_k, _put(d_v, _part(d_v, j, block) + more_v, j, block)), None

  zeros = tuple(jnp.zeros(array.shape, jnp.float32) for array in (q, k, v))
  (d_q, d_k, d_v), _ = jax.lax.scan(step, zeros, _block_pairs(q.shape[2], block))
  return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_triangle.defvjp(_forward, _backward)


class CausalLatentBlock(nnx.Module):
  """A stack of self-attention layers over T x S latents; the parameters are those of `blocks.LatentBlock`.

  Args:
    latent_attention: 'full' = every latent attends to all latents of its own and of earlier timesteps, T^2 S^2 / 2
      pairs a layer; 'axial' = layers in turn attend within their timestep, T S^2 pairs, and to the latents of their
      own slot in earlier timesteps, T^2 S / 2 pairs.
  """

  def __init__(
    self,
    config: LayerConfig,
    *,
    num_channels: int,
    num_layers: int,
    latent_attention: LatentAttention = 'full',
    rngs: nnx.Rngs,
  ):
    if latent_attention not in ('full', 'axial'):
      raise ValueError(f'latent_attention must be full or axial; got {latent_attention!r}.')
    if latent_attention == 'axial' and num_layers % 2:
      raise ValueError(
        f'Axial latent attention needs layers in pairs, within a step and across steps; got {num_layers}.'
      )
    self.latent_attention = latent_attention
    self.layers = nnx.List([SelfAttention(config, num_channels=num_channels, rngs=rngs) for _ in range(num_layers)])

  @property
  def views(self) -> tuple[str, ...]:
    """How the layers of one turn look at the latents."""
    return ('all',) if self.latent_attention == 'full' else ('step', 'slot')

  def __call__(
    self,
    latents: Tokens,
    *,
    num_latents_per_timestep: int,
    first_layer: int = 0,
    remat: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> Tokens:
    """Applies every layer.

    Args:
      latents: `[b, t * s, d]`, timestep-major, with times that rise from one timestep to the next, or without time.
      num_latents_per_timestep: S.
      first_layer: how many processor layers ran before, which only names attention maps.
      remat: keep one activation a layer and recompute the rest in the backward pass.
      rngs: a `dropout` stream for training.
    """
    layers, turn = list(self.layers), len(self.views)
    if not remat or recording():
      for index, layer in enumerate(layers):
        with named('processor', first_layer + index):
          latents = self_attend(layer, latents, self.views[index % turn], num_latents_per_timestep, rngs)
      return latents
    # A checkpointed Python loop of layers saved no memory on CPU; a scan over stacked parameters does.
    graphdef, _ = nnx.split(layers[0])
    stacked = [
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *[nnx.split(layer)[1] for layer in layers[place::turn]])
      for place in range(turn)
    ]
    keys = None if rngs is None else jax.random.split(rngs.dropout(), len(layers) // turn)

    @jax.checkpoint
    def step(latents, inputs):
      params, key = inputs
      turn_rngs = None if key is None else nnx.Rngs(dropout=key)
      for view, layer in zip(self.views, params, strict=True):
        latents = self_attend(nnx.merge(graphdef, layer), latents, view, num_latents_per_timestep, turn_rngs)
      return latents, None

    return jax.lax.scan(step, latents, (stacked, keys))[0]


def self_attend(layer: SelfAttention, latents: Tokens, view: str, s: int, rngs: nnx.Rngs | None) -> Tokens:
  """One layer over all latents, within each timestep ('step'), or across timesteps for each slot ('slot')."""
  if view == 'all':
    return _attend_all(layer, latents, s, rngs)
  groups = {'step': 'b (t s) ... -> (b t) s ...', 'slot': 'b (t s) ... -> (b s) t ...'}[view]
  fields = {name: getattr(latents, name) for name in ('values', 'position', 'time', 'valid')}
  if latents.position is not None:
    fields['position'] = jnp.broadcast_to(latents.position, (latents.batch_size, *latents.position.shape[1:]))
  parts = Tokens(**{name: None if x is None else rearrange(x, groups, s=s) for name, x in fields.items()})
  attended = _attend_all(layer, parts, s if view == 'step' else 1, rngs)
  back = ' -> '.join(reversed(groups.split(' -> ')))
  values = rearrange(attended.values, back, b=latents.batch_size, s=s)
  return dataclasses.replace(latents, values=values)


def _attend_all(layer: SelfAttention, latents: Tokens, s: int, rngs: nnx.Rngs | None) -> Tokens:
  attention, n = layer.attention, latents.num_tokens
  small = choose_chunk_size(latents.batch_size * attention.num_heads * n, n) is None
  if small or n == s or latents.time is None or recorder() is not None:
    return layer(latents, rngs=rngs)
  normed = dataclasses.replace(latents, values=layer.norm(latents.values))
  q = attention.project_queries(normed.values, latents.position)
  k, v = KeyValueReader(None, None, attention)(normed)
  heads = block_causal_attend(q, k, v, time=latents.time, valid=latents.valid, num_latents_per_timestep=s)
  return layer.finish(latents, heads, rngs=rngs)
