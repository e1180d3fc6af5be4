"""What notebook 06 asks of a byte model besides its score: what helps it, what surprises it, how fast it writes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.generation.stream import Sampler, generate
from perceiver_lib.lessons.perceiver_ar_text import TextRecipe, bits_of
from perceiver_lib.modalities.text import NUM_SPECIAL, VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.plots import theme
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.sequences import at_latents, next_tokens

if TYPE_CHECKING:
  from matplotlib.figure import Figure

BYTES_ONLY = np.arange(VOCAB_SIZE)[None] >= NUM_SPECIAL
"""`allowed` of `generation.stream`: a text holds no special token."""


def by_context(
  model: PerceiverAR, documents: Sequence[Int[np.ndarray, '_']], recipe: TextRecipe, lengths: Sequence[int]
) -> dict[int, float]:
  """Bits a byte where no prediction sees more than so many bytes, at the same number of scored bytes a window."""
  stride = min(lengths) // 2
  scores = {}
  for length in lengths:
    latents = min(recipe.num_latents, length)
    score = bits_of(model, documents, recipe, stride=stride, context_length=length, num_latents=latents)
    scores[length] = score.bits_per_byte
  return scores


def by_latents(
  model: PerceiverAR, documents: Sequence[Int[np.ndarray, '_']], recipe: TextRecipe, numbers: Sequence[int]
) -> dict[int, tuple[float, float]]:
  """Bits a byte, and milliseconds a call on 16 windows, for other numbers of latents than the model learned with.

  The stride is the same for all, a half of the fewest latents.
  """
  stride, results = max(1, min(numbers) // 2), {}
  windows = Tokens(values=jnp.asarray(np.resize(documents[0], (16, recipe.context_length))))
  for number in numbers:
    score = bits_of(model, documents, recipe, stride=stride, num_latents=number)
    results[number] = score.bits_per_byte, 1e3 * median_seconds(lambda n=number: outputs(model, windows, n))
  return results


def bits_of_each_byte(model: PerceiverAR, text: UInt8[np.ndarray, 'm'], num_latents: int) -> Float[np.ndarray, 'n']:
  """-log2 p of the last `num_latents` bytes of a text, each given all before it."""
  examples = next_tokens(jnp.asarray(ByteTokenizer.ids(text))[None])
  logits = outputs(model, examples.inputs, num_latents)
  nats = cross_entropy(logits.values, at_latents(examples.targets, logits), reduction='none')
  return np.asarray(nats[0]) / np.log(2)


@functools.partial(nnx.jit, static_argnums=2)
def outputs(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Tokens:
  """The model's outputs, compiled."""
  return model(inputs, num_latents=num_latents)


def surprise_figure(text: str, bits: Float[np.ndarray, 'n'], *, title: str, per_line: int = 64) -> Figure:
  """A text whose characters stand on a background as dark as the bits they cost."""
  with theme.use_theme():
    lines = -(-len(bits) // per_line)
    figure = theme.new_figure(0.3 * lines + 1.0, title=title)
    axes = figure.add_subplot()
    cells = np.full(lines * per_line, np.nan)
    cells[: len(bits)] = bits
    drawn = axes.imshow(cells.reshape(lines, per_line), cmap='Blues', vmin=0, vmax=10, aspect='auto')
    for index, (character, cost) in enumerate(zip(text, bits, strict=True)):
      symbol, (y, x) = {'\n': '↵'}.get(character, character), divmod(index, per_line)
      colour = 'white' if cost > 6 else 'black'
      axes.text(x, y, symbol, family='monospace', fontsize=9, color=colour, ha='center', va='center')
    theme.hide_ticks(axes)
    figure.colorbar(drawn, ax=axes, label='bits', extend='max', pad=0.01)
  return theme.describe(figure, f'{title}. {bits.mean():.2f} bits a byte on average, {bits.max():.1f} at most.')


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
  """Of several calls, after one that compiles."""
  jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - begin)
  return float(np.median(times))


def generation_speed(
  model: PerceiverAR, prompt: Int[np.ndarray, '1 m'], *, context_length: int, num_latents: int, num_tokens: int
) -> dict[str, float]:
  """Tokens a second, the prompt's reading included: {'cached', 'recomputed'}.

  Recomputed is the same loop with a window that has no room: every token reads its whole context anew.
  """
  speeds = {}
  for name, num_start in (('cached', num_latents // 2), ('recomputed', num_latents)):
    window = LatentWindow(context_length=context_length, num_latents=num_latents, num_start_latents=num_start)
    settings = {'window': window, 'num_tokens': num_tokens, 'sampler': Sampler(temperature=0.8), 'allowed': BYTES_ONLY}
    speeds[name] = num_tokens / median_seconds(lambda settings=settings: generate(model, prompt, **settings), 3)
  return speeds
