"""Modules whose parameters nobody trains: their shapes, random or frozen numbers in them, and how many there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array


class _OneKey(nnx.Rngs):
  """Gives every parameter the same key, for shapes only.

  Counting keys in a traced `nnx.Rngs` takes time quadratic in the number of layers: a minute for the largest preset.
  """

  def __init__(self):
    pass

  def params(self) -> Array:
    return jax.random.key(0)


def abstract(model: Callable[..., nnx.Module], *arguments: Any) -> nnx.Module:
  """What `model(*arguments, rngs=...)` makes, with shapes for parameters; nothing is allocated or computed."""
  return nnx.eval_shape(lambda: model(*arguments, rngs=_OneKey()))


def filled(module: nnx.Module, *, scale: float, seed: int = 0) -> nnx.Module:
  """The module with every parameter moved by normal numbers, made in no time: for what no training depends on.

  Published starts at zero hide what follows them, and a check of a gradient or a memory then says nothing.

  Args:
    module: stays as it is; the shapes of an `abstract` one count as zeros.
    scale: standard deviation of the numbers.
    seed: of the numbers, which NumPy draws in the order of the parameters' paths.
  """
  random = np.random.default_rng(seed)

  def number(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf

  def moved(leaf: Any) -> Array:
    noise = jnp.asarray(random.normal(0.0, scale, leaf.shape).astype(leaf.dtype))
    return noise if isinstance(leaf, jax.ShapeDtypeStruct) else leaf + noise

  graphdef, parameters, others = nnx.split(module, nnx.Param, ...)
  return nnx.merge(graphdef, jax.tree.map(moved, parameters), jax.tree.map(number, others))


class Frozen(nnx.Variable):
  """An array that no training changes: `fit` carries it along, without a gradient and without an optimizer state."""


def frozen(module: nnx.Module, *paths: str) -> nnx.Module:
  """A copy of the module whose parameters at and below these paths are `Frozen`.

  Raises:
    ValueError: for a path at and below which there is no parameter.
  """
  copy, met = nnx.clone(module), set()
  for path, part in nnx.iter_modules(copy):
    for name, value in list(vars(part).items()):
      full = '.'.join(map(str, (*path, name)))
      above = {one for one in paths if f'{full}.'.startswith(f'{one}.')}
      if isinstance(value, nnx.Param) and above:
        setattr(part, name, Frozen(value[...]))
        met |= above
  if missed := [path for path in paths if path not in met]:
    raise ValueError(f'There is no parameter at or below {missed[0]!r}.')
  return copy


def count(module: nnx.Module) -> int:
  """Trainable numbers; of an `abstract` module too, so that the largest preset costs nothing."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
