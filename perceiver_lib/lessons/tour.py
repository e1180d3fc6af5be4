"""Notebook 00: the four models as tiny functions of eight numbers, and what an input byte costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.experiments.files import project_root
from perceiver_lib.experiments.measuring import compiled, measure, peak_bytes, temporary_megabytes
from perceiver_lib.experiments.notebooks import discover
from perceiver_lib.experiments.tables import Table
from perceiver_lib.experiments.workers import in_fresh_process
from perceiver_lib.modalities.byte_array import byte_array_tokens
from perceiver_lib.models.last_inputs import on_inputs
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.unified import UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.plots import theme
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import PositionQueries, position_queries
from perceiver_lib.scores.causality import Probe
from perceiver_lib.tokens import Tokens, may_attend
from perceiver_lib.training.losses import cross_entropy

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def probes(seed: int, *, num_inputs: int = 8) -> list[Probe]:
  """The four models, tiny, on one row of numbers; the last two in time."""
  m = num_inputs
  adapter = FeatureAdapterConfig(num_values=1, position=FourierFeatures(num_bands=3, max_resolution=(m,)))
  position = jnp.linspace(-1, 1, m)[None, :, None]
  decoder = DecoderConfig(queries=PositionQueries(position=adapter.position), num_outputs=3)
  steps = jnp.arange(m, dtype=jnp.int32)[None] // 2
  output_steps = jnp.array([[0, 1, 1, 2, 3]], jnp.int32)
  where = jnp.linspace(-1, 1, 5)[:, None]

  perceiver = filled(abstract(Perceiver, PerceiverConfig.tiny(adapter, num_outputs=3)), scale=0.3, seed=seed)
  io = filled(abstract(PerceiverIO, PerceiverIOConfig.tiny(adapter, decoder)), scale=0.3, seed=seed)
  unified = filled(
    abstract(UnifiedPerceiver, UnifiedPerceiverConfig.tiny(adapter, decoder, num_timesteps=4)), scale=0.3, seed=seed
  )
  ar = tiny_ar(seed, num_inputs=m)
  queries = position_queries(where, batch_size=1)
  timed_queries = dataclasses.replace(queries, time=output_steps)

  def tokens(values: Array, time: Int[Array, '1 m'] | None = None) -> Tokens:
    return Tokens(values=values, position=position, time=time)

  return [
    Probe(name='Perceiver', outputs=lambda v: perceiver(tokens(v))[:, None], allowed=np.ones((1, m), bool)),
    Probe(name='Perceiver IO', outputs=lambda v: io(tokens(v), queries), allowed=np.ones((5, m), bool)),
    Probe(
      name='Perceiver AR',
      outputs=lambda v: ar.encode(tokens(v)).values,
      allowed=_allowed(jnp.arange(m // 2, m)[None], jnp.arange(m)[None]),
    ),
    Probe(
      name='unified',
      outputs=lambda v: unified(tokens(v, steps), timed_queries),
      allowed=_allowed(output_steps, steps),
    ),
  ]


def tiny_ar(seed: int, *, num_inputs: int) -> PerceiverAR:
  """A Perceiver AR on numbers instead of ids, whose latents are the second half of its inputs."""
  adapter = FeatureAdapterConfig(num_values=1, position=FourierFeatures(num_bands=3, max_resolution=(num_inputs,)))
  layer = LayerConfig(num_heads=2, qk_channels=16)
  config = PerceiverARConfig(
    input_adapter=adapter,
    num_latents=num_inputs // 2,
    num_latent_channels=16,
    num_outputs=3,
    num_self_attends=2,
    cross_attend=layer,
    self_attend=layer,
  )
  return filled(abstract(PerceiverAR, config), scale=0.3, seed=seed)


def leaking_probe(seed: int, *, num_inputs: int = 8) -> Probe:
  """The Perceiver AR of `probes` with its latents' times taken away before they read each other."""
  model, m = tiny_ar(seed, num_inputs=num_inputs), num_inputs
  position = jnp.linspace(-1, 1, m)[None, :, None]

  def outputs(values: Array) -> Array:
    inputs = model.in_time(Tokens(values=values, position=position))
    raw = model.latent_inputs(inputs, m // 2)
    latents = model.cross_attends[0](on_inputs(model, raw)[1], inputs, model.input_adapter)
    return model.blocks[0](dataclasses.replace(latents, time=None)).values

  allowed = _allowed(jnp.arange(m // 2, m)[None], jnp.arange(m)[None])
  return Probe(name='Perceiver AR, latents without time', outputs=outputs, allowed=allowed)


def _allowed(query_time: Int[Array, '1 o'], key_time: Int[Array, '1 m']) -> Bool[np.ndarray, 'o m']:
  return np.asarray(may_attend(query_time, key_time, None)[0])


def marked_digits(step: int, num_rows: int, num_tokens: int = 32) -> dict[str, np.ndarray]:
  """Rows of random digits, one of them marked: 'values' `[b, m, 11]` (one-hot digit, mark) and its digit as 'label'."""
  random = np.random.default_rng(step)
  digits, marked = random.integers(0, 10, (num_rows, num_tokens)), random.integers(0, num_tokens, num_rows)
  mark = np.arange(num_tokens) == marked[:, None]
  values = np.concatenate([np.eye(10)[digits], mark[..., None]], axis=-1).astype(np.float32)
  return {'values': values, 'label': digits[np.arange(num_rows), marked].astype(np.int32)}


def random_bytes(num_bytes: int, seed: int = 0) -> Tokens:
  """What bytes say does not change what they cost."""
  return byte_array_tokens(np.random.default_rng(seed).integers(0, 256, (1, num_bytes), np.uint8))


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
  tokens, start = random_bytes(num_bytes), peak_bytes()
  shapes = abstract(Perceiver, PerceiverConfig.of_bytes(num_bytes))
  _, cost = measure(byte_step(), filled(shapes, scale=0.02), tokens)
  return {
    'num_bytes': num_bytes,
    'start_gigabytes': start / 1e9,
    'dense_temporary_megabytes': temporary_megabytes(compiled(byte_step(chunk_size=num_bytes), shapes, tokens)),
    **dataclasses.asdict(cost),
  }


def measure_alone(num_bytes: int) -> dict[str, float]:
  """`measure_bytes` in a process of its own, whose peak of memory says something."""
  return in_fresh_process('perceiver_lib.lessons.tour:measure_bytes', num_bytes=num_bytes)


def memory_table(measured: Sequence[Mapping[str, float]]) -> Table:
  """What `measure_bytes` found, a row for each length."""
  header = ('bytes', 'process before', 'process peak', 'temporaries', 'temporaries, all at once', 'streamed step')
  rows = [
    (
      f'{row["num_bytes"]:,}',
      f'{row["start_gigabytes"]:.2f} GB',
      f'{row["peak_gigabytes"]:.2f} GB',
      f'{row["temporary_megabytes"]:.0f} MB',
      f'{row["dense_temporary_megabytes"] / 1e3:.2f} GB',
      f'{row["seconds"]:.2f} s',
    )
    for row in measured
  ]
  return Table(header, rows)


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


def suite_map(folder: Path | None = None) -> Table:
  """The notebooks that exist in a folder; None = those of the project."""
  folder = folder or project_root() / 'notebooks'
  rows = [(f'`{n.name}`', n.title, ', '.join(p for p in n.parameters if p != 'run_dir')) for n in discover(folder)]
  return Table(('notebook', 'what it shows', 'parameters'), rows)
