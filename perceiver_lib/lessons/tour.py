"""What notebook 00 shows of the family without training: what a byte costs.

`python -m perceiver_lib.lessons.tour 20` measures one training step on 2^20 bytes in a process of its own
and prints one line of JSON; only a fresh process has a peak of memory that says something about the model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.experiments.environment import peak_bytes
from perceiver_lib.experiments.notebooks import discover
from perceiver_lib.experiments.processes import answer_of
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.plots import theme
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.losses import cross_entropy

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class TourRecipe:
  """Settings of one profile.

  Attributes:
    log2_bytes: input lengths at which a training step is measured, as powers of two, shortest first.
  """

  log2_bytes: tuple[int, ...]


RECIPES = {
  'smoke': TourRecipe(log2_bytes=(12,)),
  'demo': TourRecipe(log2_bytes=(16, 18, 20)),
  'full': TourRecipe(log2_bytes=(16, 18, 20, 22)),
}


def size_name(log2_bytes: int) -> str:
  """2^14 -> '16k', 2^20 -> '1m': as metric names carry it."""
  return f'{2 ** (log2_bytes - 20)}m' if log2_bytes >= 20 else f'{2 ** (log2_bytes - 10)}k'


# What a byte costs.


def byte_perceiver(num_bytes: int) -> PerceiverConfig:
  """One byte a token, 256 channels; 256 latents x 256, 6 self-attends, 8 heads in every attention."""
  position = FourierFeatures(num_bands=64, max_resolution=(num_bytes,))
  return PerceiverConfig(
    input_adapter=FeatureAdapterConfig(
      num_values=1, scale=2 / 255, shift=-1, num_projected_channels=127, position=position
    ),
    num_latents=256,
    num_latent_channels=256,
    num_outputs=10,
    num_self_attends_per_block=6,
    cross_attend=LayerConfig(num_heads=8),
    self_attend=LayerConfig(num_heads=8),
  )


def byte_tokens(num_bytes: int, seed: int = 0) -> Tokens:
  """Random bytes: what they say does not change what they cost."""
  values = np.random.default_rng(seed).integers(0, 256, (1, num_bytes), np.uint8)
  return Tokens(values=jnp.asarray(values), position=jnp.linspace(-1, 1, num_bytes, dtype=jnp.float32)[None, :, None])


def compiled_step(num_bytes: int, *, chunk_size: int | None = None) -> Any:
  """Forward and backward of the byte Perceiver, compiled for shapes only: `step(params, tokens) -> loss, gradients`."""
  graphdef, params = nnx.split(abstract(Perceiver, byte_perceiver(num_bytes)))

  def loss(params: Any, tokens: Tokens) -> Float[Array, '']:
    return cross_entropy(nnx.merge(graphdef, params)(tokens, chunk_size=chunk_size), jnp.zeros((1,), jnp.int32))

  tokens = jax.eval_shape(lambda: byte_tokens(num_bytes))
  return jax.jit(jax.value_and_grad(loss)).lower(params, tokens).compile()


def measure(num_bytes: int) -> dict[str, float]:
  """One line of the table: a step that runs, streamed, and the same step with everything at once, which only compiles.

  Returns:
    `peak_gigabytes` of this process, `start_gigabytes` before the model was made, `temporary_megabytes` that the
    compiled step sets aside, `dense_temporary_megabytes` with one chunk as long as the input, and `seconds` of the
    second run.
  """
  tokens = byte_tokens(num_bytes)
  start = peak_bytes()
  step = compiled_step(num_bytes)
  params = nnx.state(filled(abstract(Perceiver, byte_perceiver(num_bytes)), scale=0.02))
  jax.block_until_ready(step(params, tokens))
  begin = time.perf_counter()
  loss, _ = jax.block_until_ready(step(params, tokens))
  seconds, peak = time.perf_counter() - begin, peak_bytes()
  if not np.isfinite(loss):
    raise ValueError(f'A step on {num_bytes:,} bytes gave the loss {loss}; its memory would mean nothing.')
  dense = compiled_step(num_bytes, chunk_size=num_bytes)
  return {
    'num_bytes': num_bytes,
    'start_gigabytes': start / 1e9,
    'peak_gigabytes': peak / 1e9,
    'temporary_megabytes': step.memory_analysis().temp_size_in_bytes / 1e6,
    'dense_temporary_megabytes': dense.memory_analysis().temp_size_in_bytes / 1e6,
    'seconds': seconds,
  }


def measure_in_fresh_process(log2_bytes: int) -> dict[str, float]:
  """`measure` in a process of its own."""
  return answer_of('perceiver_lib.lessons.tour', log2_bytes)


def measure_all(recipe: TourRecipe) -> list[dict[str, float]]:
  """One measurement for each length, each in a fresh process."""
  return [measure_in_fresh_process(log2_bytes) for log2_bytes in recipe.log2_bytes]


def memory_figure(measured: Sequence[Mapping[str, float]]) -> Figure:
  """Memory of a training step against the length of its input, on two logarithmic axes."""
  lengths = [row['num_bytes'] for row in measured]
  lines = {
    'all keys at once: temporaries (compiled only)': ([r['dense_temporary_megabytes'] for r in measured], '--', 's'),
    'streamed: peak of the whole process': ([1e3 * r['peak_gigabytes'] for r in measured], '-', 'o'),
    'before the model: Python and JAX': ([1e3 * r['start_gigabytes'] for r in measured], ':', 'd'),
    'streamed: temporaries': ([r['temporary_megabytes'] for r in measured], '-', '^'),
  }
  with theme.use_theme():
    figure = theme.new_figure(4.0, title='What a byte costs: memory of one training step, forward and backward')
    axes = figure.add_subplot()
    for colour, (name, (values, style, marker)) in zip(
      (theme.VERMILLION, theme.BLUE, theme.GREY, theme.GREEN), lines.items(), strict=True
    ):
      axes.plot(lengths, values, style, marker=marker, color=colour, label=name)
      label = f'{values[-1]:,.0f} MB' if values[-1] < 1e3 else f'{values[-1] / 1e3:,.2f} GB'
      axes.annotate(label, (lengths[-1], values[-1]), xytext=(8, -3), textcoords='offset points', color=colour)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_xticks(lengths, [f'{length:,}' for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel='input bytes, one token a byte', ylabel='megabytes', xlim=(lengths[0] / 1.3, lengths[-1] * 1.9))
    figure.legend(loc='outside lower left', ncols=2)
  first, last = measured[0], measured[-1]
  return theme.describe(
    figure,
    f'From {first["num_bytes"]:,} to {last["num_bytes"]:,} input bytes the streamed step keeps '
    f'{first["temporary_megabytes"]:.0f} to {last["temporary_megabytes"]:.0f} MB of temporaries in a process of '
    f'{first["peak_gigabytes"]:.2f} to {last["peak_gigabytes"]:.2f} GB; with all keys at once the temporaries grow '
    f'from {first["dense_temporary_megabytes"] / 1e3:.2f} to {last["dense_temporary_megabytes"] / 1e3:.2f} GB.',
  )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def suite_map(folder: Path) -> str:
  """The notebooks that exist in a folder, as a Markdown table."""
  rows = [(f'`{n.name}`', n.title, ', '.join(p for p in n.parameters if p != 'run_dir')) for n in discover(folder)]
  return markdown_table(('notebook', 'what it shows', 'parameters'), rows)


def main(arguments: Sequence[str]) -> int:
  if len(arguments) != 1 or not arguments[0].isdigit() or not 10 <= int(arguments[0]) <= 30:
    print(f'Expected one number from 10 to 30, the log2 of the bytes to read; got {list(arguments)}.', file=sys.stderr)
    return 2
  print(json.dumps(measure(2 ** int(arguments[0]))))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
