"""What tests of the models share: tolerances, stated once, and parameters set from golden files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from flax import nnx

from perceiver_lib.tokens import Tokens

ROUNDING = 1e-6
"""Two float32 computations that differ in the order of a few sums: largest difference over the largest magnitude."""

STREAMED = 4e-6
"""The same for an online softmax: each rescaling rounds logits of size 10 once more, 10 x 2^-24 at a time."""

BFLOAT16 = 3e-2
"""Operands of 8 bits, 2^-9 = 0.2 % each, through a few layers and back: norm of the difference over the norm."""

GOLDEN = 2e-6
"""A float32 model of a few layers against the float64 statement of its maths, measured in the same way."""


def assert_close(actual, expected, tolerance: float = ROUNDING) -> None:
  """Every leaf agrees within `tolerance` of its largest magnitude."""
  actual_leaves, actual_structure = jax.tree.flatten(actual)
  expected_leaves, expected_structure = jax.tree.flatten(expected)
  assert actual_structure == expected_structure
  for a, e in zip(actual_leaves, expected_leaves, strict=True):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    assert a.shape == e.shape
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max(initial=0.0)))


def compiled(function: Callable, *arguments: Any, **settings: Any) -> Any:
  """The call as one program: an eager one compiles each operation by itself, which takes several times as long."""
  return jax.jit(functools.partial(function, **settings))(*arguments)


def value_and_gradients(function: Callable[..., jax.Array], *arguments: Any) -> tuple[jax.Array, tuple[Any, ...]]:
  """The output, and the gradients of the sum of its sines by every argument."""

  def loss(*arguments: Any) -> tuple[jax.Array, jax.Array]:
    output = function(*arguments)
    return jnp.sum(jnp.sin(output)), output

  every = tuple(range(len(arguments)))
  (_, output), gradients = compiled(jax.value_and_grad(loss, argnums=every, has_aux=True), *arguments)
  return output, gradients


def assert_close_in_norm(actual, expected, tolerance: float) -> None:
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  difference = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
  assert difference <= tolerance, difference


def write_litter(folder: Path, name: str) -> None:
  """What programs put beside a user's files: copies of one of them, and files of another kind under its name."""
  content = (folder / name).read_bytes()
  hidden = ('.git', '.ipynb_checkpoints', '.Trash-1000', '__MACOSX', '__pycache__', '@eaDir', '$RECYCLE.BIN')
  for place in [*hidden, '.git/deeper', '.git/classes/cat']:
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / Path(name).name).write_bytes(content)
  for litter in ('._' + Path(name).name, '.DS_Store', 'Thumbs.db', 'desktop.ini', '~$' + Path(name).name):
    (folder / Path(name).parent / litter).write_bytes(content)
  (folder / 'again').symlink_to(folder, target_is_directory=True)


@contextlib.contextmanager
def as_users_call() -> Iterator[None]:
  """Without the checks of annotations, which only tests have: what users meet are the library's own sentences."""
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    yield
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenQueries:
  """Queries whose values are channels already, for comparison with the reference."""

  num_channels: int

  def build(self, rngs: nnx.Rngs) -> Callable[[Tokens], jax.Array]:
    return given_channels


def given_channels(tokens: Tokens) -> jax.Array:
  return tokens.values


def set_parameters(module: nnx.Module, parameters: Mapping[str, np.ndarray]) -> None:
  """Sets every parameter of a module from dotted paths; refuses a missing or extra path or another shape."""
  flat = {'.'.join(map(str, path)): param for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param))}
  assert set(flat) == set(parameters), sorted(set(flat) ^ set(parameters))
  for path, param in flat.items():
    assert param.shape == parameters[path].shape, path
  state = nnx.from_flat_state(
    [
      (path, nnx.Param(jnp.asarray(parameters['.'.join(map(str, path))], jnp.float32)))
      for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))
    ]
  )
  nnx.update(module, state)


def renamed(parameters: Mapping[str, np.ndarray], **prefixes: str) -> dict[str, np.ndarray]:
  """Golden paths under the library's names: `encoder` and `processor` parts sit at the top of a model."""
  names = {
    'encoder.latents': 'latents',
    'encoder.cross_attends': 'cross_attends',
    'processor.layers': 'blocks.0.layers',
  }
  result = {}
  for path, array in parameters.items():
    for old, new in (names | prefixes).items():
      if path == old or path.startswith(old + '.'):
        path = new + path[len(old) :]
        break
    result[path] = array
  return result


def parameters_of(model: nnx.Module) -> dict[str, np.ndarray]:
  """The parameters of a model under the names of `tests/reference`, the inverse of `renamed`."""
  names = {'blocks.0.layers': 'processor.layers', 'head': 'decoder.output', 'output_norm': 'decoder.output_norm'}
  names |= {name: f'encoder.{name}' for name in ('latents', 'cross_attends', 'latent_projection')}
  found = {}
  for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    name = '.'.join(map(str, path))
    old = next((old for old in names if name == old or name.startswith(old + '.')), '')
    found[names.get(old, '') + name[len(old) :]] = np.asarray(param[...])
  return found
