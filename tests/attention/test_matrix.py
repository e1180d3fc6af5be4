"""Every form of attention against the plain reference: values and gradients, leaf by leaf.

A seed draws sizes, times, padding, window, precision, and whether a form is compiled and whether its backward pass
recomputes it. `MATRIX_SEEDS=200 pytest tests/attention/test_matrix.py` draws that many, a tenth without jit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.attention.attend import attend, read, reference_attend
from perceiver_lib.attention.block_causal import block_causal_attend
from perceiver_lib.attention.caching import attend_cache, with_room
from perceiver_lib.attention.projections import keys_and_values
from perceiver_lib.attention.timesteps import prefix_read
from perceiver_lib.blocks import CrossAttention, LayerConfig
from perceiver_lib.positions import FourierFeatures, Rotary
from perceiver_lib.tokens import SOURCE_TIME, Tokens, may_attend
from tests.support import STREAMED, assert_close

pytestmark = pytest.mark.gpu

TOLERANCE = {'float32': STREAMED, 'float64': 1e-13}
NEVER = np.iinfo(np.int32).max
NUM_LETTERS, CHANNELS = 11, 7
RULES = ('by timestep', 'by timestep, in a window', 'without time', 'over latents in time')


class Reader(nnx.Module):
  """What all forms share: two modalities, or the latents themselves, under one attention."""

  def __init__(self, layer: LayerConfig, num_places: int):
    rngs = nnx.Rngs(3)
    self.layer = CrossAttention(layer, num_query_channels=5, num_input_channels=CHANNELS, rngs=rngs)
    table = LearnedPositions(shape=(num_places,), num_channels=CHANNELS)
    self.letters = EmbeddingAdapterConfig(num_embeddings=NUM_LETTERS, num_channels=CHANNELS, position=table).build(rngs)
    fourier = FourierFeatures(num_bands=1, max_resolution=(num_places,))
    self.pixels = FeatureAdapterConfig(num_values=3, num_projected_channels=4, position=fourier).build(rngs)

  def sources(self, inputs):
    if 'latents' in inputs:
      return self.layer.sources(inputs['latents'], None)
    return self.layer.sources(inputs, {name: getattr(self, name) for name in inputs})


@dataclasses.dataclass(frozen=True)
class Problem:
  """Questions, what they are asked of, and what the rule says of them.

  Attributes:
    floats: what gradients are taken of: the reader, the queries' channels, and the floats of the inputs.
    inputs: tokens by modality.
    num_timesteps: at each of which all questions are asked; None = each once, with the time of its latent or without.
    allowed: `[b, i, j]`.
  """

  floats: tuple[Any, ...]
  inputs: dict[str, Tokens]
  query_time: jax.Array | None
  num_timesteps: int | None
  window: int | None
  chunk_size: int
  allowed: np.ndarray

  def asked(self, floats: tuple[Any, ...], *, spoiled: bool = True):
    """Questions `[b, h, s, k]`, and sources that hold NaN where nothing may read."""
    reader, channels, values, position = floats
    inputs = dict(self.inputs)
    for name, array in values.items():
      place = position.get(name, inputs[name].position)
      inputs[name] = dataclasses.replace(inputs[name], values=array, position=place)
    if spoiled:
      inputs = dict(zip(inputs, self._with_nan(inputs), strict=True))
    own = jnp.arange(channels.shape[1])[None, :, None]
    return reader.layer.questions(Tokens(values=channels, position=own)), reader.sources(inputs)

  def _with_nan(self, inputs: dict[str, Tokens]) -> list[Tokens]:
    first, spoiled = 0, []
    for tokens in inputs.values():
      hidden = ~self.allowed[:, :, first : first + tokens.num_tokens].any(1)
      first += tokens.num_tokens
      if jnp.issubdtype(tokens.values.dtype, jnp.floating):
        values = jnp.where(hidden[..., None], jnp.nan, tokens.values)
        tokens = dataclasses.replace(tokens, values=values)
      spoiled.append(tokens)
    return spoiled

  def rows(self, q):
    """Every question at every timestep."""
    return q if self.num_timesteps is None else jnp.tile(q, (1, 1, self.num_timesteps, 1))


def drawn(seed: int, rule: str, dtype: str) -> Problem:
  random = np.random.default_rng(seed)

  def one_of(*choices):
    return choices[random.integers(len(choices))]

  b, h, s, steps = one_of(1, 2, 3), one_of(1, 2, 3), one_of(1, 2, 3, 5), one_of(1, 2, 3, 5, 7)
  sizes = {'letters': one_of(1, 2, 13, 29), 'pixels': one_of(1, 5, 17)}
  window = one_of(1, 2, 3, 19) if rule == RULES[1] else None
  rotary = one_of(None, Rotary(fraction=0.5))
  layer = LayerConfig(num_heads=h, qk_channels=h * one_of(5, 7), v_channels=h * one_of(3, 11), rotary=rotary)
  shared = one_of(True, False)

  def normal(*shape):
    return jnp.asarray(random.normal(size=shape), dtype)

  def at(*choices, size):
    return None if rule == 'without time' else jnp.asarray(random.choice(choices, (b, size)), jnp.int32)

  def valid(size):
    return one_of(None, jnp.asarray(random.random((b, size)) > 0.3))

  if rule == 'over latents in time':
    n = s * steps
    time = jnp.asarray(np.cumsum(random.integers(1, 4, (b, steps)), axis=1).repeat(s, axis=1), jnp.int32)
    place = jnp.arange(n)[None, :, None]
    inputs = {'latents': Tokens(values=normal(b, n, CHANNELS), position=place, time=time, valid=valid(n))}
    floats = {'latents': inputs['latents'].values}
    query_time, num_timesteps, num_queries, position = time, None, n, {}
  else:
    times = (SOURCE_TIME, -3, -1, *range(0, steps + 1, 2), NEVER)
    rows = 1 if shared else b
    letters, pixels = sizes['letters'], sizes['pixels']
    inputs = {
      'letters': Tokens(
        values=jnp.asarray(random.integers(0, NUM_LETTERS, (b, letters)), jnp.uint8),
        position=jnp.broadcast_to(jnp.arange(letters)[None, :, None], (rows, letters, 1)),
        time=at(*times, size=letters),
        valid=valid(letters),
      ),
      'pixels': Tokens(
        values=normal(b, pixels, 3),
        position=jnp.asarray(random.uniform(-1, 1, (rows, pixels, 1)), dtype),
        time=at(*times, size=pixels),
        valid=valid(pixels),
      ),
    }
    floats, position = {'pixels': inputs['pixels'].values}, {'pixels': inputs['pixels'].position}
    num_timesteps, num_queries = (None if rule == 'without time' else steps), s
    step = jnp.tile(jnp.arange(steps, dtype=jnp.int32).repeat(s), (b, 1))
    query_time = None if rule == 'without time' else step

  tokens = list(inputs.values())
  exists = np.concatenate([np.ones((b, t.num_tokens), bool) if t.valid is None else t.valid for t in tokens], axis=1)
  if query_time is None:
    allowed = np.repeat(exists[:, None], num_queries, axis=1)
  else:
    time = np.concatenate([t.time for t in tokens], axis=1)
    allowed = np.array(may_attend(query_time, jnp.asarray(time), jnp.asarray(exists)))
    if window is not None:
      in_window = time[:, None].astype(np.int64) > np.asarray(query_time, np.int64)[..., None] - window
      allowed &= in_window | (time[:, None] == SOURCE_TIME)
  reader = Reader(layer, max(sizes.values()))
  return Problem(
    floats=(reader, normal(b, num_queries, 5), floats, position),
    inputs=inputs,
    query_time=query_time,
    num_timesteps=num_timesteps,
    window=window,
    chunk_size=one_of(1, 4, 8, 64),
    allowed=allowed,
  )


def by_reference(problem: Problem, floats):
  q, sources = problem.asked(floats, spoiled=False)
  parts = [reader(tokens) for tokens, reader in sources]
  k, v = (jnp.concatenate(arrays, axis=2) for arrays in zip(*parts, strict=True))
  return reference_attend(problem.rows(q), k, v, jnp.asarray(problem.allowed))


def by_read(problem: Problem, floats, chunk_size: int | None = None):
  q, sources = problem.asked(floats)
  return read(problem.rows(q), sources, query_time=problem.query_time, chunk_size=chunk_size)


def operands(problem: Problem, floats, garbage: float):
  """Queries, keys and values, with garbage in what no query may read."""
  q, sources = problem.asked(floats, spoiled=False)
  seen = jnp.asarray(problem.allowed.any(1))[:, None, :, None]
  k, v = (jnp.where(seen, array, jnp.asarray(garbage, array.dtype)) for array in keys_and_values(sources))
  return problem.rows(q), k, v


def by_attend(problem: Problem, floats, chunk_size: int | None = None):
  tokens = list(problem.inputs.values())
  time = None if problem.query_time is None else jnp.concatenate([t.time for t in tokens], axis=1)
  valid = [jnp.ones((t.batch_size, t.num_tokens), bool) if t.valid is None else t.valid for t in tokens]
  rule = {'query_time': problem.query_time, 'key_time': time, 'key_valid': jnp.concatenate(valid, axis=1)}
  return attend(*operands(problem, floats, np.nan), chunk_size=chunk_size, **rule)


def by_cache(problem: Problem, floats):
  """Each query by itself over a cache with room for two more tokens; one that may read nothing is never asked."""
  q, k, v = operands(problem, floats, 0.0)
  cached = with_room(k, v, 2)
  allowed = jnp.pad(jnp.asarray(problem.allowed), ((0, 0), (0, 0), (0, 2)))
  answers = jax.vmap(lambda q, valid: attend_cache(q[:, :, None], cached, valid)[:, :, 0], (2, 1), 2)(q, allowed)
  return jnp.where(problem.allowed.any(-1)[:, None, :, None], answers, jnp.zeros((), answers.dtype))


def by_prefix(problem: Problem, floats, chunk_size: int | None = None):
  steps = {'num_timesteps': problem.num_timesteps, 'window': problem.window}
  return prefix_read(*problem.asked(floats), chunk_size=chunk_size, **steps)


def in_blocks(problem: Problem, floats):
  latents = problem.inputs['latents']
  times = np.asarray(latents.time)[0]
  settings = {'num_latents_per_timestep': int((times == times[0]).sum()), 'block_rows': problem.chunk_size}
  valid = None if latents.valid is None else jnp.asarray(problem.allowed.any(1))
  return block_causal_attend(*operands(problem, floats, np.nan), time=latents.time, valid=valid, **settings)


def forms_of(problem: Problem) -> dict[str, Callable]:
  """The forms that can answer these questions."""
  chunks = {'chunk_size': problem.chunk_size}
  forms = {'cached': (by_cache, {})}
  if problem.window is None:
    forms |= {'dense': (by_read, {}), 'streamed': (by_read, chunks)}
    forms |= {'dense operands': (by_attend, {}), 'streamed operands': (by_attend, chunks)}
  if problem.num_timesteps is not None:
    forms |= {'prefix': (by_prefix, {}), 'grouped': (by_prefix, chunks)}
  if 'latents' in problem.inputs:
    forms |= {'blocks': (in_blocks, {})}
  return {
    name: lambda floats, form=form, settings=settings: form(problem, floats, **settings)
    for name, (form, settings) in forms.items()
  }


def judged(form: Callable, problem: Problem):
  """The output and all gradients of a random weighting of it, by name; a key's bias beside its kernel.

  A softmax cancels the bias of the keys, whose gradient is zero but for the rounding of the kernel's.
  """
  reader = problem.floats[0]
  width = reader.layer.attention.num_heads, reader.layer.attention.value.out_features
  b, i = problem.allowed.shape[:2]
  weights = jnp.asarray(
    np.random.default_rng(7).normal(size=(b, width[0], i, width[1] // width[0])), problem.floats[1].dtype
  )

  def loss(floats):
    output = form(floats)
    return jnp.sum(output * weights), output

  (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(problem.floats)
  parameters = dict(nnx.to_flat_state(nnx.state(gradients[0])))
  key = ('layer', 'attention', 'key')
  both = jnp.concatenate([parameters.pop((*key, part))[...].ravel() for part in ('kernel', 'bias')])
  return output, both, {'.'.join(map(str, path)): leaf[...] for path, leaf in parameters.items()}, gradients[1:]


MANY = int(os.environ.get('MATRIX_SEEDS', 0))


@pytest.mark.parametrize('seed', range(MANY or 4))
def test_every_form_equals_the_reference(seed):
  rule, dtype = RULES[seed % 4], ('float32', 'float64')[(seed + seed // 4) % 2]
  random = np.random.default_rng((seed, 1))
  with jax.enable_x64(True) if dtype == 'float64' else contextlib.nullcontext():
    problem = drawn(seed, rule, dtype)
    expected = jax.jit(lambda: judged(lambda floats: by_reference(problem, floats), problem))()
    for name, form in forms_of(problem).items():
      form = jax.checkpoint(form) if random.random() < 0.3 else form
      judge = lambda form=form: judged(form, problem)  # noqa: E731
      # Without jit, every operation is a program to compile: not in the suite.
      actual = judge() if MANY and random.random() < 0.1 else jax.jit(judge)()
      try:
        assert_close(actual, expected, TOLERANCE[dtype])
      except AssertionError as error:
        raise AssertionError(f'{name}, {rule}, {dtype}') from error
      assert actual[0].dtype == dtype
      assert not np.any(np.asarray(actual[0]).swapaxes(1, 2)[~problem.allowed.any(-1)]), name
