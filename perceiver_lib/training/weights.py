"""Weights of a model in one safetensors file: named by their paths, read by any framework, small enough to commit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import safe_open
from safetensors.numpy import save

from perceiver_lib.files import replacing
from perceiver_lib.training.checkpoints import CheckpointError


def save_weights(
  model: nnx.Module,
  path: str | os.PathLike,
  *,
  dtype: DTypeLike | None = None,
  record: Mapping[str, Any] | None = None,
) -> Path:
  """Writes every parameter and running statistic under its path, such as 'blocks.0.layers.1.mlp.up.kernel'.

  Args:
    dtype: what floating-point numbers are rounded to, such as `jnp.float16` for half the size; None = as they are.
    record: how they came about, as JSON in the file's header, for `load_record`.

  Raises:
    CheckpointError: if the file cannot be written; an earlier file of that name stays whole.
  """
  path = Path(path).expanduser()
  arrays = {name: np.asarray(leaf[...]) for name, leaf in _named(model).items()}
  if dtype is not None:
    arrays = {name: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for name, a in arrays.items()}
  try:
    with replacing(path) as aside:
      aside.write_bytes(save(arrays, None if record is None else {'record': json.dumps(record)}))
  except OSError as error:
    raise CheckpointError(f'Weights could not be written to {path}: {error.strerror}. Name another place.') from error
  return path


def load_weights(model: nnx.Module, path: str | os.PathLike) -> nnx.Module:
  """A copy of a model with the weights of `save_weights`, in the dtypes of the model, which stays as it is.

  Args:
    model: of the same sizes; `parameters.abstract` makes one without numbers.

  Raises:
    FileNotFoundError: if there is no such file.
    CheckpointError: if it cannot be read or is damaged, or its names or shapes are not those of the model.
  """
  path = Path(path).expanduser()
  arrays, _ = _read(path)
  check_shapes(path, {name: array.shape for name, array in arrays.items()}, shapes(model))
  return with_arrays(model, arrays.pop)


def load_record(path: str | os.PathLike) -> dict[str, Any]:
  """What `save_weights` was given as `record`.

  Raises:
    FileNotFoundError: if there is no such file.
    CheckpointError: if it cannot be read, is damaged or holds no record.
  """
  path = Path(path).expanduser()
  if (record := _read(path)[1].get('record')) is None:
    raise CheckpointError(f'The weight file {path} does not say how its weights came about; load_weights reads them.')
  return json.loads(record)


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
  """Of every parameter and running statistic, under its path."""
  return {name: leaf.shape for name, leaf in _named(model).items()}


def check_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
  """Raises a CheckpointError that names the first array by which a file and a model differ."""
  if odd := sorted(expected.keys() ^ found.keys()):
    who, shape = ('file', expected[odd[0]]) if odd[0] in expected else ('model', found[odd[0]])
    raise CheckpointError(
      f'{path} and the model differ in {len(odd)} arrays: the {who} lacks {odd[0]!r} of shape {shape}.'
    )
  for name, shape in expected.items():
    if found[name] != shape:
      raise CheckpointError(f'{path} has {name!r} of shape {found[name]}; the model has {shape}.')


def with_arrays(model: nnx.Module, array: Callable[[str], np.ndarray]) -> nnx.Module:
  """A copy of the model with `array(path)` for every parameter and running statistic, asked for one at a time."""
  graphdef, random, state = nnx.split(model, nnx.RngState, ...)
  leaves = [
    (names, leaf.replace(jnp.asarray(array('.'.join(map(str, names))), leaf.dtype)))
    for names, leaf in nnx.to_flat_state(state)
  ]
  return nnx.merge(graphdef, random, nnx.from_flat_state(leaves), copy=True)


def _named(model: nnx.Module) -> dict[str, nnx.Variable]:
  _, _, state = nnx.split(model, nnx.RngState, ...)
  return {'.'.join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  try:
    with safe_open(path, framework='np') as stored:
      return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
  except FileNotFoundError:
    raise FileNotFoundError(f'There is no weight file {path}; write one with save_weights.') from None
  except PermissionError as error:
    raise CheckpointError(f'The weight file {path} cannot be read: {error.strerror}.') from None
  except Exception as error:  # a damaged header can surface as any error of safetensors and NumPy
    raise CheckpointError(
      f'The weight file {path} is damaged or no safetensors file: {error}. Fetch it again.'
    ) from None
