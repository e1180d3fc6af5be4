"""Notebook 06: what a byte model of plays costs to run and to ask, byte by byte, and how fast it writes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.experiments.measuring import in_turn
from perceiver_lib.generation.stream import Sampler, generate
from perceiver_lib.modalities.text import NUM_SPECIAL, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.sequences import at_latents, next_tokens

BYTES_ONLY = np.arange(VOCAB_SIZE)[None] >= NUM_SPECIAL
"""`allowed` of `generation.stream`: a text holds no special token."""


@functools.partial(nnx.jit, static_argnums=2)
def outputs(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Tokens:
  """The model's outputs, compiled."""
  return model(inputs, num_latents=num_latents)


def bits_of_each_byte(model: PerceiverAR, text: UInt8[np.ndarray, 'm'], num_latents: int) -> Float[np.ndarray, 'n']:
  """-log2 p of the last `num_latents` bytes of a text, each given all before it."""
  examples = next_tokens(jnp.asarray(ByteTokenizer.ids(text))[None])
  logits = outputs(model, examples.inputs, num_latents)
  nats = cross_entropy(logits.values, at_latents(examples.targets, logits), reduction='none')
  return np.asarray(nats[0]) / np.log(2)


def milliseconds(model: PerceiverAR, windows: Int[np.ndarray, 'b m'], numbers: Sequence[int]) -> dict[int, float]:
  """Median time of a call on these windows, by number of latents; the calls take turns."""
  inputs = Tokens(values=jnp.asarray(windows))
  seconds = in_turn({number: functools.partial(outputs, model, inputs, number) for number in numbers}, rounds=5)
  return {number: 1e3 * float(np.median(found)) for number, found in seconds.items()}


def generation_speed(
  model: PerceiverAR, prompt: Int[np.ndarray, '1 m'], *, num_latents: int, num_tokens: int
) -> dict[str, float]:
  """Tokens per second, the prompt's reading included: {'cached', 'recomputed'}.

  Recomputed is the same loop with a window that has no room: every token reads its whole context, as long as the
  prompt, anew.
  """

  def call(num_start_latents: int) -> np.ndarray:
    window = LatentWindow(context_length=prompt.shape[1], num_latents=num_latents, num_start_latents=num_start_latents)
    sampler = Sampler(temperature=0.8)
    return generate(model, prompt, window=window, num_tokens=num_tokens, sampler=sampler, allowed=BYTES_ONLY)

  starts = {'cached': num_latents // 2, 'recomputed': num_latents}
  seconds = in_turn({name: functools.partial(call, start) for name, start in starts.items()}, rounds=3)
  return {name: num_tokens / float(np.median(found)) for name, found in seconds.items()}
