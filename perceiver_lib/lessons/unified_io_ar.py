"""Notebook 08: the unified model without training: rule, special cases, what masking and a million bytes cost."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.attention.attend import attend, read
from perceiver_lib.attention.products import full_float32
from perceiver_lib.attention.projections import KeyValueReader
from perceiver_lib.blocks import LatentBlock, LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.experiments.measuring import compiled, measure, temporary_megabytes
from perceiver_lib.experiments.workers import in_fresh_process
from perceiver_lib.modalities.byte_array import timed_byte_tokens
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import PositionQueries, position_queries
from perceiver_lib.scores.causality import Probe, jit_once
from perceiver_lib.tokens import SOURCE_TIME, Tokens, may_attend
from perceiver_lib.training.host import enable_compilation_cache
from perceiver_lib.training.losses import cross_entropy

# The rule, and who keeps it.

INPUT_TIMES = (2, 0, SOURCE_TIME, 1, 3, 1, 0, 2)
"""Of eight inputs in no order; the last but one is padding."""
INPUT_VALID = (True,) * 6 + (False, True)
QUERY_TIMES = (0, 1, 1, 2, 3)
NUM_LATENTS, NUM_TIMESTEPS = 2, 4


def probes(seed: int) -> list[Probe]:
  """The published sketch, then this model in two kinds, all on the inputs of `INPUT_TIMES`.

  The sketch (Yeevani 2024) masks what latents read and what queries read; its latents see each other without a mask.
  """
  kinds = {'full': {}, 'window of 1': {'encoder_window': 1}}
  models = {name: tiny_model(seed, **changes) for name, changes in kinds.items()}
  return [
    _probe('published sketch', models['full'], as_sketched),
    *(_probe(f'ours, {name}', model, lambda model, inputs: model.encode(inputs)) for name, model in models.items()),
  ]


def tiny_model(seed: int, *, encoder_window: int | None = None) -> UnifiedPerceiver:
  """A unified model with two latents for each of four timesteps, every parameter random."""
  adapter = FeatureAdapterConfig(num_values=1, position=FourierFeatures(num_bands=3, max_resolution=(8,)))
  decoder = DecoderConfig(queries=PositionQueries(position=adapter.position), num_outputs=3)
  config = UnifiedPerceiverConfig.tiny(adapter, decoder, num_timesteps=NUM_TIMESTEPS)
  latents = LearnedLatents(num_latents=NUM_LATENTS, num_timesteps=NUM_TIMESTEPS, encoder_window=encoder_window)
  config = dataclasses.replace(config, latents=latents, num_self_attends_per_block=1)
  return filled(abstract(UnifiedPerceiver, config), scale=0.3, seed=seed)


def as_sketched(model: UnifiedPerceiver, inputs: Tokens) -> Tokens:
  """Latents whose processor knows no time: each sees all others."""
  latents = model.read(inputs)
  unmasked = model.blocks[0](dataclasses.replace(latents, time=None))
  return dataclasses.replace(latents, values=unmasked.values)


def _probe(name: str, model: UnifiedPerceiver, encode: Callable[[UnifiedPerceiver, Tokens], Tokens]) -> Probe:
  times, valid = jnp.array([INPUT_TIMES], jnp.int32), jnp.array([INPUT_VALID])
  asked = jnp.array([QUERY_TIMES], jnp.int32)
  queries = position_queries(jnp.linspace(-1, 1, len(QUERY_TIMES))[:, None], batch_size=1, time=asked)
  position = jnp.linspace(-1, 1, len(INPUT_TIMES))[None, :, None]

  def outputs(values: Float[Array, '1 m 1']) -> Float[Array, '1 o e']:
    return model.decode(encode(model, Tokens(values=values, position=position, time=times, valid=valid)), queries)

  return Probe(name=name, outputs=outputs, allowed=np.asarray(may_attend(asked, times, valid)[0]))


@full_float32()
def largest_differences(
  first: tuple[Callable[..., Array], nnx.Module], second: tuple[Callable[..., Array], nnx.Module], values: Array
) -> tuple[float, float]:
  """Of the outputs, and of the gradients leaf by leaf, of two functions `(model, values)`.

  Each is over the largest magnitude of its own leaf. Biases of keys are left out: a softmax cancels them, so that their
  gradients are nothing but rounding.
  """

  def outputs_and_gradients(function: Callable[..., Array], model: nnx.Module) -> tuple[Array, dict[str, Array]]:
    def loss(model: nnx.Module, values: Array) -> tuple[Array, Array]:
      outputs = function(model, values)
      return jnp.sum(jnp.sin(outputs)), outputs

    (_, outputs), gradients = jit_once(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(model, values)
    by_name = {'.'.join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(gradients[0]))}
    kept = {name: leaf for name, leaf in by_name.items() if not name.endswith('key.bias')}
    return outputs, kept | {'inputs': gradients[1]}

  def difference(a: Array, b: Array) -> float:
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))

  (outputs, gradients), (other_outputs, other_gradients) = (outputs_and_gradients(*one) for one in (first, second))
  return difference(outputs, other_outputs), max(
    difference(gradients[name], other_gradients[name]) for name in gradients
  )


# What the processor's mask costs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessorSize:
  """T x S latents of D channels through layers of so many heads."""

  num_timesteps: int
  num_latents: int = 128
  num_latent_channels: int = 256
  num_layers: int = 6
  num_heads: int = 8

  def latents(self) -> Tokens:
    """Their shapes; nothing is allocated."""
    shape = (1, self.num_timesteps * self.num_latents)
    return jax.eval_shape(
      lambda: Tokens(values=jnp.zeros((*shape, self.num_latent_channels)), time=jnp.zeros(shape, jnp.int32))
    )


def abstract_processor(size: ProcessorSize) -> LatentBlock:
  make = functools.partial(LatentBlock, num_channels=size.num_latent_channels, num_layers=size.num_layers)
  return abstract(make, LayerConfig(num_heads=size.num_heads))


def processor_step(size: ProcessorSize, *, naive: bool) -> Callable[[LatentBlock, Tokens], Any]:
  """Forward and backward through the latents' self-attention: `step(block, latents)`.

  Args:
    naive: the whole matrix of T S x T S logits under a mask in every layer; otherwise `LatentBlock` with remat.
  """

  def loss(block: LatentBlock, latents: Tokens) -> Float[Array, '']:
    if naive:
      for layer in block.layers:
        latents = _with_whole_matrix(layer, latents)
    else:
      latents = block(latents, num_latents_per_timestep=size.num_latents, remat=True)
    return jnp.mean(jnp.square(latents.values))

  return jax.value_and_grad(loss)


def _with_whole_matrix(layer: Any, latents: Tokens) -> Tokens:
  normed = dataclasses.replace(latents, values=layer.norm(latents.values))
  q = layer.attention.project_queries(normed.values, None)
  k, v = KeyValueReader(None, None, layer.attention)(normed)
  heads = attend(q, k, v, query_time=latents.time, key_time=latents.time)
  return layer.finish(latents, heads, rngs=None)


def processor_gigabytes(size: ProcessorSize, *, naive: bool) -> float:
  """What the compiler sets aside for the step of `processor_step`; nothing is run."""
  step = processor_step(size, naive=naive)
  return temporary_megabytes(compiled(step, abstract_processor(size), size.latents())) / 1e3


def processor_peak_gigabytes(size: ProcessorSize) -> float:
  """The most memory of a process of its own that runs one step without the whole matrix."""
  settings = dataclasses.asdict(size)
  return in_fresh_process('perceiver_lib.lessons.unified_io_ar:run_processor', **settings)['peak_gigabytes']


def run_processor(**settings: int) -> dict[str, float]:
  """The `Cost` of one step of a `ProcessorSize` with random numbers."""
  enable_compilation_cache()
  size = ProcessorSize(**settings)
  shape = (1, size.num_timesteps * size.num_latents, size.num_latent_channels)
  values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  time = np.arange(size.num_timesteps, dtype=np.int32).repeat(size.num_latents)
  latents = Tokens(values=jnp.asarray(values), time=jnp.asarray(time)[None])
  block = filled(abstract_processor(size), scale=0.02)
  return dataclasses.asdict(measure(processor_step(size, naive=False), block, latents, calls=1)[1])


# A million bytes over sixteen timesteps.

How = Literal['prefix', 'general']


def random_timed_bytes(num_bytes: int) -> Tokens:
  """What bytes say does not change what they cost; in the 16 timesteps of `UnifiedPerceiverConfig.of_bytes`."""
  return timed_byte_tokens(np.random.default_rng(0).integers(0, 256, (1, num_bytes), np.uint8), num_timesteps=16)


def encode_generally(model: UnifiedPerceiver, inputs: Tokens) -> Tokens:
  """`model.encode` with the streamed read that any queries may use: T x S rows of logits for every byte."""
  s, t = model.config.latents.num_latents, model.config.latents.num_timesteps
  steps = jnp.arange(t, dtype=jnp.int32)
  q = repeat(model.question(inputs.batch_size), 'b h s k -> b h (t s) k', t=t)
  query_time = repeat(steps, 't -> b (t s)', b=inputs.batch_size, s=s)
  sources = model.cross_attends[0].sources(inputs, model.input_adapter)
  latents = model.answer(read(q, sources, query_time=query_time), steps)
  return model.blocks[0](latents, num_latents_per_timestep=s, remat=True)


def byte_loss(model: UnifiedPerceiver, inputs: Tokens, how: How = 'prefix') -> Float[Array, '']:
  """The cross-entropy of a label at each timestep."""
  latents = model.encode(inputs, remat=True) if how == 'prefix' else encode_generally(model, inputs)
  steps = jnp.arange(model.config.latents.num_timesteps, dtype=jnp.int32)[None]
  logits = model.decode(latents, Tokens(values=jnp.zeros_like(steps), time=steps))
  return cross_entropy(logits, steps % 10)


def measure_bytes(num_bytes: int, how: How) -> dict[str, Any]:
  """One step, forward and backward: its `Cost`, and the `loss`, by which one sees that both reads compute the same."""
  enable_compilation_cache()
  model = filled(abstract(UnifiedPerceiver, UnifiedPerceiverConfig.of_bytes(num_bytes)), scale=0.05)
  step = jax.value_and_grad(lambda model, tokens: byte_loss(model, tokens, how))
  (loss, _), cost = measure(step, model, random_timed_bytes(num_bytes), calls=1)
  return {'how': how, 'num_bytes': num_bytes, 'loss': float(loss), **dataclasses.asdict(cost)}


def measure_both_reads(num_bytes: int) -> dict[How, dict[str, Any]]:
  """`measure_bytes` of the prefix read and then of the general one; the peak of memory is the first one's own only."""
  return {how: measure_bytes(num_bytes, how) for how in ('prefix', 'general')}


def measure_bytes_alone(num_bytes: int) -> list[dict[str, Any]]:
  """The two of `measure_both_reads`, from a process of its own."""
  answer = in_fresh_process('perceiver_lib.lessons.unified_io_ar:measure_both_reads', num_bytes=num_bytes)
  return [answer['prefix'], answer['general']]
