"""Attention rollout: from an output through the latents to the inputs (Abnar and Zuidema, ACL 2020, 2005.00928).

A map of one layer says where that layer looked; after a latent stack a latent is a mixture of latents, and its own row
no longer says which inputs it holds. Rollout multiplies the layers. It treats attention as the only flow, with the
residual as a fixed share; it is a summary for the eye, not an attribution by gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, Int

from perceiver_lib.attention.capture import AttentionMap


def attention_rollout(
  maps: Mapping[str, AttentionMap],
  *,
  latent_inputs: Int[Array, 'b n'] | None = None,
  residual: float = 0.5,
) -> Float[Array, 'b i m']:
  """How much of each input is in each latent, or in each output if the maps end with a decoder.

  With A the mean over heads and R what the latents hold so far: the first read gives R = A, a later one
  R <- r R + (1 - r) A, a self-attend R <- r R + (1 - r) A R, and the decoder A R. Learned latents and queries come from
  no input, so their residual has no share; latents that are inputs themselves have one, which `latent_inputs` says.

  Args:
    maps: every attention of one call in order, as `capture_attention` returns them, with all queries.
    latent_inputs: the input that each latent is made of (Perceiver AR), None = learned latents.
    residual: r, the share that a layer passes on unchanged.

  Returns:
    `[b, n, m]` or `[b, o, m]`; a row sums to 1, unless a query on its way may attend to nothing.

  Raises:
    ValueError: for maps that do not begin with a read, or that hold some of the latents only.
  """
  names = list(maps)
  if not names or not names[0].startswith('encoder.'):
    raise ValueError(f'A rollout begins with the map of a read, encoder.cross_attention.0; got {names}.')
  held: Float[Array, 'b i m'] | None = None
  for name, one in maps.items():
    weights = reduce(one.weights, 'b h i j -> b i j', 'mean')
    if name.startswith('encoder.') and held is None:
      held = weights
      if latent_inputs is not None:
        held = residual * jax.nn.one_hot(latent_inputs, weights.shape[2]) + (1 - residual) * weights
      continue
    inner = held.shape[2] if name.startswith('encoder.') else held.shape[1]
    if weights.shape[2] != inner:
      raise ValueError(
        f'A rollout needs the maps of all latents: {name} has {weights.shape[2]} keys for {inner} of the maps before.'
      )
    if name.startswith('decoder'):
      held = jnp.einsum('bij,bjm->bim', weights, held)
    else:
      new = weights if name.startswith('encoder.') else jnp.einsum('bij,bjm->bim', weights, held)
      held = residual * held + (1 - residual) * new
  return held
