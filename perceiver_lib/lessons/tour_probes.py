"""The four models as tiny functions whose gradients show what the one rule forbids, for notebook 00."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig, IdentityDecoderConfig
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.unified import (
  InputLatents,
  LearnedLatents,
  UnifiedPerceiver,
  UnifiedPerceiverConfig,
)
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.plots import theme
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import LearnedQueries, PositionQueries, position_queries
from perceiver_lib.tokens import Tokens, may_attend

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """A tiny model as a function of its input values, and what the rule says may depend on what.

  Attributes:
    name: for people.
    outputs: from input values `[1, m, 1]` to outputs, or to the latents where they are the outputs, `[1, o, e]`.
    allowed: which output may depend on which input.
  """

  name: str
  outputs: Callable[[Float[Array, '1 m 1']], Float[Array, '1 o e']]
  allowed: Bool[np.ndarray, 'o m']


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
    embedded = dataclasses.replace(raw, values=model.project_latents(model.input_adapter(raw)))
    latents = model.cross_attends[0](embedded, inputs, model.input_adapter)
    return model.blocks[0](dataclasses.replace(latents, time=None)).values

  allowed = _allowed(jnp.arange(m // 2, m)[None], jnp.arange(m)[None])
  return Probe(name='Perceiver AR, latents without time', outputs=outputs, allowed=allowed)


def _allowed(query_time: Int[Array, '1 o'], key_time: Int[Array, '1 m']) -> Bool[np.ndarray, 'o m']:
  return np.asarray(may_attend(query_time, key_time, None)[0])


def sensitivity(probe: Probe, seed: int) -> Float[np.ndarray, 'o m']:
  """How much each output moves with each input: the norm of the Jacobian over the output's channels."""
  values = jax.random.normal(jax.random.key(seed), (1, probe.allowed.shape[1], 1))
  jacobian = jax.jit(jax.jacrev(probe.outputs))(values)[0, :, :, 0, :, 0]
  return np.asarray(jnp.linalg.norm(jacobian, axis=1))


def num_violations(probe: Probe, moved: Float[np.ndarray, 'o m']) -> int:
  """Pairs that the rule forbids and the gradient connects, or that it allows and nothing connects."""
  return int(np.sum((moved != 0) != probe.allowed))


def gradient_figure(moved: Sequence[tuple[Probe, Float[np.ndarray, 'o m']]]) -> Figure:
  """For each probe the rule's mask beside the Jacobian; exact zeros are white and crossed."""
  from matplotlib.colors import ListedColormap

  with theme.use_theme():
    figure = theme.new_figure(3.3, title='What the rule allows (top), and what really moves each output (bottom)')
    widths = [1] * len(moved)
    grid = figure.subplots(2, len(moved), width_ratios=widths, squeeze=False)
    for (above, below), (probe, jacobian) in zip(grid.T, moved, strict=True):
      above.imshow(probe.allowed, cmap=ListedColormap([theme.PALE, theme.BLUE]), vmin=0, vmax=1)
      relative = np.log10(np.where(jacobian > 0, jacobian / jacobian.max(), np.nan))
      drawn = below.imshow(relative, cmap=theme.SEQUENTIAL, vmin=-3, vmax=0)
      rows, columns = np.nonzero(jacobian == 0)
      below.scatter(columns, rows, marker='x', s=14, color=theme.GREY, linewidths=0.8)
      above.set_title(textwrap.fill(probe.name, 14), y=1.0)
      below.set_xlabel('input')
      for axes in (above, below):
        axes.set_anchor('N')
        axes.set_ylim(4.5, -0.5)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(0, probe.allowed.shape[1], 2))
        axes.set_yticks(range(probe.allowed.shape[0]))
    grid[0, 0].set_ylabel('the rule\noutput')
    grid[1, 0].set_ylabel('the gradient\noutput')
    figure.colorbar(drawn, ax=list(grid[1]), label='log10 of |gradient|\nover largest', aspect=12)
  wrong = sum(num_violations(probe, jacobian) for probe, jacobian in moved)
  names = ', '.join(probe.name for probe, _ in moved)
  return theme.describe(
    figure,
    f'Masks above and Jacobians below for {names}: {wrong} pairs differ. Crosses mark gradients of exactly zero.',
  )


def special_cases(seed: int) -> dict[str, float]:
  """How far the unified model is from its special cases with the same weights: outputs, over their largest magnitude.

  One timestep is Perceiver IO, whose mean latent is that of a Perceiver with one read; one latent a timestep, made of
  that timestep's input, is Perceiver AR. Notebook 08 compares gradients too.
  """
  numbers = FeatureAdapterConfig(num_values=3, num_projected_channels=12)
  layer = LayerConfig(num_heads=2)
  decoder = DecoderConfig(queries=LearnedQueries(num_queries=5, num_channels=8), num_outputs=4)
  shared = {
    'input_adapter': numbers,
    'num_latent_channels': 12,
    'num_self_attends_per_block': 1,
    'cross_attend': layer,
    'self_attend': layer,
  }
  last_inputs = {'latents': InputLatents(num_latents=5), 'decoder': IdentityDecoderConfig(num_outputs=4)}
  one_step = {'latents': LearnedLatents(num_latents=3, timestep_table=False), 'decoder': decoder}
  as_ar = {name: value for name, value in shared.items() if name != 'num_self_attends_per_block'}
  ar = filled(
    abstract(PerceiverAR, PerceiverARConfig(num_latents=5, num_outputs=4, num_self_attends=1, **as_ar)),
    scale=0.2,
    seed=seed,
  )
  io = filled(abstract(PerceiverIO, PerceiverIOConfig(num_latents=3, decoder=decoder, **shared)), scale=0.2, seed=seed)
  perceiver = filled(abstract(Perceiver, PerceiverConfig(num_latents=3, num_outputs=2, **shared)), scale=0.2, seed=seed)
  like_ar = filled(
    abstract(UnifiedPerceiver, UnifiedPerceiverConfig(**shared, **last_inputs)), scale=0.2, seed=seed + 1
  )
  like_io = filled(abstract(UnifiedPerceiver, UnifiedPerceiverConfig(**shared, **one_step)), scale=0.2, seed=seed + 1)
  nnx.update(like_ar, nnx.state(ar))
  nnx.update(like_io, nnx.state(io))
  encoder = {name: leaves for name, leaves in nnx.state(perceiver).items() if name != 'head'}
  nnx.update(io_of_perceiver := nnx.clone(io), nnx.State(encoder))

  values = jax.random.normal(jax.random.key(seed), (2, 9, 3))
  plain, asked = Tokens(values=values), jnp.tile(jnp.arange(5, dtype=jnp.int32), (2, 1))
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)  # noqa: E731
  in_order = dataclasses.replace(plain, time=jnp.tile(jnp.arange(9, dtype=jnp.int32), (2, 1)))
  at_once, query = dataclasses.replace(plain, time=zeros(2, 9)), Tokens(values=asked)

  @jax.jit
  def pairs() -> dict[str, tuple[Array, Array]]:
    timed = dataclasses.replace(query, time=zeros(2, 5))
    return {
      'one timestep: Perceiver IO': (like_io(at_once, timed), io(plain, query)),
      'one latent a timestep: Perceiver AR': (like_ar(in_order).values, ar(plain).values),
      "one read and a mean: Perceiver's latents": (
        io_of_perceiver.encode(plain).values.mean(1),
        perceiver.encode(plain).values.mean(1),
      ),
    }

  return {name: float(jnp.abs(a - b).max() / jnp.abs(b).max()) for name, (a, b) in pairs().items()}
