"""What notebook 00 shows of the family without training: what a byte costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.experiments.measuring import compiled, measure, peak_bytes, temporary_megabytes
from perceiver_lib.experiments.notebooks import discover
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.workers import in_fresh_process
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


def byte_step(chunk_size: int | None = None) -> Callable[[Perceiver, Tokens], tuple[Float[Array, ''], Perceiver]]:
  """Forward and backward: `step(model, tokens) -> loss, gradients`."""

  def loss(model: Perceiver, tokens: Tokens) -> Float[Array, '']:
    return cross_entropy(model(tokens, chunk_size=chunk_size), jnp.zeros((1,), jnp.int32))

  return jax.value_and_grad(loss)


def measure_bytes(num_bytes: int) -> dict[str, float]:
  """One line of the table: a step that runs, streamed, and the same step with everything at once, which only compiles.

  Returns:
    The `Cost` of the step, `start_gigabytes` of this process before the model was made, and
    `dense_temporary_megabytes` with one chunk as long as the input.
  """
  tokens, start = byte_tokens(num_bytes), peak_bytes()
  shapes = abstract(Perceiver, byte_perceiver(num_bytes))
  _, cost = measure(byte_step(), filled(shapes, scale=0.02), tokens)
  return {
    'num_bytes': num_bytes,
    'start_gigabytes': start / 1e9,
    'dense_temporary_megabytes': temporary_megabytes(compiled(byte_step(chunk_size=num_bytes), shapes, tokens)),
    **dataclasses.asdict(cost),
  }


def measure_all(recipe: TourRecipe) -> list[dict[str, float]]:
  """One measurement for each length, each in a fresh process."""
  return [in_fresh_process('perceiver_lib.lessons.tour:measure_bytes', num_bytes=2**log2) for log2 in recipe.log2_bytes]


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


def suite_map(folder: Path) -> Table:
  """The notebooks that exist in a folder."""
  rows = [(f'`{n.name}`', n.title, ', '.join(p for p in n.parameters if p != 'run_dir')) for n in discover(folder)]
  return Table(('notebook', 'what it shows', 'parameters'), rows)
