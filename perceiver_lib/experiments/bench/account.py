"""Where the time of the 201M language model goes, as fractions of the machine's own float32 matmul rate.

Beside the whole model stand its parts, each alone: the products that it is traced to contain, one by one at their own
shapes, then layer norms, GELUs, softmaxes and the optimizer. What the parts do not explain is the rest: residual sums,
biases, copies, memory on its way. `python -m perceiver_lib.experiments.bench.account bench.json` prints the account of
a file that `python -m perceiver_lib bench matmul-account-forward matmul-account-train --out bench.json` wrote.
"""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.bench import machine, published_sizes
from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.measuring import Call
from perceiver_lib.experiments.tables import markdown
from perceiver_lib.files import read_json

FORWARD_GFLOP = 120.9
"""Multiplications and additions of the model's contractions, by `flops.count_flops`; a training step does thrice it."""

MACHINE_GFLOP = 2 * machine.SIZE**3 / 1e9
LATENTS, PLACES, WIDE, NARROW, HEADS, LAYERS = 256, 2_048, 1_280, 768, 8, 26


def _products(train: bool) -> Call:
  """Every product of the traced program, alone, as often as it occurs."""
  import jax
  import numpy as np
  from flax import nnx

  graphdef, weights, tokens = published_sizes.language_model()
  forward = lambda weights, tokens: nnx.merge(graphdef, weights)(tokens)  # noqa: E731
  loss = lambda weights, tokens: published_sizes.language_loss(nnx.merge(graphdef, weights), tokens)  # noqa: E731
  function = jax.grad(loss) if train else forward
  counts = collections.Counter(_dots(jax.make_jaxpr(function)(weights, tokens).jaxpr))
  random, calls = np.random.default_rng(0), []
  for (left, right, dimensions), count in counts.items():
    operands = [jax.device_put(random.normal(size=shape).astype(np.float32)) for shape in (left, right)]
    calls.append((jax.jit(functools.partial(jax.lax.dot_general, dimension_numbers=dimensions)), operands, count))

  def call() -> None:
    for product, operands, count in calls:
      for _ in range(count):
        product(*operands).block_until_ready()

  return call


def _dots(jaxpr: Any) -> Iterator[tuple[Any, ...]]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield (*(operand.aval.shape for operand in equation.invars), equation.params['dimension_numbers'])
    times = equation.params['length'] if equation.primitive.name == 'scan' else 1
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from list(_dots(inner)) * times


def _piece(function: Callable[..., Any], shapes: Mapping[tuple[int, ...], int], train: bool) -> Call:
  """A function of one array at each of these shapes, as often as the model does it, with its gradient if `train`."""
  import jax
  import jax.numpy as jnp

  compiled = jax.jit((lambda x: jax.vjp(function, x)[1](x)[0]) if train else function)
  calls = [(jnp.ones(shape), count) for shape, count in shapes.items()]

  def call() -> None:
    for x, count in calls:
      for _ in range(count):
        compiled(x).block_until_ready()

  return call


def _layer_norms(train: bool) -> Call:
  from flax import nnx

  from perceiver_lib.blocks import layer_norm

  norms = {width: layer_norm(width, nnx.Rngs(0)) for width in (WIDE, NARROW)}
  shapes = {(1, LATENTS, WIDE): 2 * LAYERS + 3, (1, PLACES, NARROW): 3}
  return _piece(lambda x: norms[x.shape[-1]](x), shapes, train)


def _gelus(train: bool) -> Call:
  import jax

  return _piece(jax.nn.gelu, {(1, LATENTS, WIDE): LAYERS + 1, (1, PLACES, NARROW): 1}, train)


def _softmaxes(train: bool) -> Call:
  import jax

  shapes = {(1, HEADS, LATENTS, LATENTS): LAYERS, (1, HEADS, LATENTS, PLACES): 1, (1, HEADS, PLACES, LATENTS): 1}
  return _piece(jax.nn.softmax, shapes, train)


def _adamw() -> Call:
  import jax
  import jax.numpy as jnp
  import optax

  _, weights, _ = published_sizes.language_model()
  optimizer = optax.adamw(1e-4)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(weights: Any, moments: Any, gradients: Any) -> tuple[Any, Any]:
    updates, moments = optimizer.update(gradients, moments, weights)
    return optax.apply_updates(weights, updates), moments

  gradients = jax.tree.map(jnp.ones_like, weights)
  state = [weights, optimizer.init(weights)]

  def call() -> None:
    state[:] = update(*state, gradients)
    jax.block_until_ready(state)

  return call


def _case(train: bool) -> Case:
  whole = published_sizes.CASES['language-train' if train else 'language']
  pieces: dict[str, Callable[[], Call]] = {
    'products alone': functools.partial(_products, train),
    'layer norms alone': functools.partial(_layer_norms, train),
    'GELUs alone': functools.partial(_gelus, train),
    'softmaxes alone': functools.partial(_softmaxes, train),
  }
  if train:
    pieces['AdamW alone'] = _adamw
  return Case(
    title=f'{whole.title}, with its parts and one product of {machine.SIZE:,}^3',
    contenders={
      **whole.contenders,
      **{name: Contender(build=build) for name, build in pieces.items()},
      'machine, JAX': machine.CASES['matmul'].contenders['JAX, float32'],
      'machine, PyTorch': machine.CASES['matmul'].contenders['PyTorch, float32'],
    },
  )


CASES = {'matmul-account-forward': _case(False), 'matmul-account-train': _case(True)}


def table(name: str, result: Mapping[str, Any]) -> str:
  """The account of one measured case as Markdown: rates as fractions of the machine's, parts as shares of the whole."""
  rows = {key: row for key, row in result['contenders'].items() if 'median_seconds' in row}
  seconds = {key: row['median_seconds'] for key, row in rows.items()}
  gflop = FORWARD_GFLOP * (3 if name.endswith('train') else 1)
  limit = MACHINE_GFLOP / min(seconds[key] for key in seconds if key.startswith('machine'))
  work = {'perceiver_lib': gflop, 'Hugging Face': gflop, 'products alone': gflop}
  work |= {key: MACHINE_GFLOP for key in seconds if key.startswith('machine')}
  whole = seconds['perceiver_lib']
  lines = []
  for key, value in seconds.items():
    rates = (f'{work[key] / value:.0f}', f'{work[key] / value / limit:.0%}') if key in work else ('', '')
    share = '' if key.startswith('machine') or key == 'Hugging Face' else f'{value / whole:.0%}'
    lines.append((key, f'{value:.3f}', *rates, share))
  rest = whole - sum(value for key, value in seconds.items() if key.endswith('alone'))
  lines.append(('rest', f'{rest:.3f}', '', '', f'{rest / whole:.0%}'))
  return f'{result["title"]}\n\n' + markdown(('', 'seconds', 'GFLOP/s', "of the machine's", 'of the step'), lines)


if __name__ == '__main__':
  measured = read_json(Path(sys.argv[1])) or {}
  print('\n\n'.join(table(name, measured[name]) for name in CASES if name in measured))
