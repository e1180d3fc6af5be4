"""What a cache makes of tokens that are known: for checks of a model's cache against the model itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.generation.stream import CachedModel
from perceiver_lib.tokens import Tokens


def replay(model: CachedModel, tokens: Tokens, window: LatentWindow, *, num_steps: int) -> Float[Array, '_n b e']:
  """Logits behind each of the last `num_steps` + 1 tokens: those before are read at once, then one after another.

  Exactly what generation would have seen, so a causal model gives the same in one call on all tokens, with
  `window.num_start_latents + num_steps` latents.

  Args:
    tokens: the last `num_steps` + 1 are valid in every row.
    window: with room for `num_steps` tokens.
  """
  num_read = tokens.num_tokens - num_steps
  history = jax.tree.map(lambda leaf: leaf[:, :num_read], tokens)
  later = Tokens(values=tokens.values, position=tokens.position)
  later = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[:, num_read:, None], 1, 0), later)
  cache, logits = model.start(history, window, room=num_steps)
  _, others = jax.lax.scan(model.step, cache, later)
  return jnp.concatenate([logits[None], others])
