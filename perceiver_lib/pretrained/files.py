"""Files of arrays from elsewhere: safetensors, PyTorch's zip files and pickles, of which nothing is ever run."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open

from perceiver_lib.training.checkpoints import CheckpointError


class Arrays(NamedTuple):
  """The arrays of a file: their shapes by name, and `take`, which reads one and then forgets it."""

  shapes: Mapping[str, tuple[int, ...]]
  take: Callable[[str], np.ndarray]


def read_arrays(path: Path) -> Arrays:
  """The arrays of a file, whatever its format, which its first bytes tell.

  Raises:
    CheckpointError: if it is damaged, holds anything but arrays, or asks for code to be run.
  """
  try:
    with path.open('rb') as file:
      start = file.read(9)
    if start[8:] == b'{':  # first of all, because the eight bytes before it may be any
      return _safetensors(path)
    if start[:2] == b'PK':
      return _in_memory(_torch(path), path)
    if start[:1] == b'\x80':
      with path.open('rb') as file:
        return _in_memory(_flat(_Unpickler(file, path).load()), path)
    return _safetensors(path)
  except (CheckpointError, OSError, MemoryError):
    raise
  # A pickle that was cut off or tampered with fails in as many ways as there are instructions in it.
  except Exception as error:
    raise CheckpointError(
      f'The weight file {path} is damaged, or neither safetensors nor a pickle of arrays: '
      f'{str(error).splitlines()[0] if str(error) else type(error).__name__}. Fetch it again.'
    ) from None


def _safetensors(path: Path) -> Arrays:
  stored = safe_open(path, framework='np')
  return Arrays({name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}, stored.get_tensor)  # noqa: SIM118


def _in_memory(arrays: dict[str, Any], path: Path) -> Arrays:
  arrays = {name: array.array if isinstance(array, _Array) else array for name, array in arrays.items()}
  for name, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise CheckpointError(f'{path} holds {name!r}, which is no array of numbers; this is no file of weights.')
  return Arrays({name: array.shape for name, array in arrays.items()}, arrays.pop)


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  """DeepMind's files: mappings from modules to mappings from names, some in a mapping of `params` and `state`."""
  if not isinstance(tree, Mapping):
    return {prefix or 'its content': tree}
  if not prefix and 'params' in tree:
    return _flat(tree['params']) | _flat(tree.get('state') or {})
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f'{prefix}/{key}' if prefix else str(key))
  return flat


class _Storage(NamedTuple):
  """The type of numbers of a PyTorch storage."""

  dtype: np.dtype


_STORAGES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'BoolStorage': np.bool_,
}


class _Numbers:
  """The type of an array's numbers as NumPy pickles it: a text, and then a state whose second entry is the byte order.

  A pickle does not get hold of NumPy's own types: an array of objects made from bytes is an array of forged pointers.
  """

  __slots__ = ('dtype',)

  def __init__(self, text: str, *_: Any):
    if not re.fullmatch(r'[biuf][1248]', text):
      raise ValueError(f'arrays hold numbers; got the type {text!r}')
    self.dtype = np.dtype(text)

  def __setstate__(self, state: tuple) -> None:
    self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
  """An array as NumPy pickles it: first without content, then by its state."""

  __slots__ = ('array',)

  def __init__(self, *_: Any):
    self.array = None

  def __setstate__(self, state: tuple) -> None:
    _, shape, numbers, is_fortran, data = state
    self.array = np.frombuffer(data, numbers.dtype).reshape(shape, order='F' if is_fortran else 'C')


def _from_buffer(data: Any, numbers: _Numbers, shape: tuple[int, ...], order: str) -> _Array:
  """How NumPy writes an array into a pickle of protocol 5."""
  made = _Array()
  made.__setstate__((1, shape, numbers, order == 'F', data))
  return made


def _encoded(text: str, encoding: str) -> bytes:
  """How Python writes bytes into a pickle of protocol 2."""
  if encoding != 'latin1':
    raise ValueError(f'bytes are written in latin1; got {encoding}')
  return text.encode('latin1')


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
  """A tensor of PyTorch as a view of its storage, all of which must lie inside."""
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if math.prod(size) and not (min(offset, *size, *stride, 0) >= 0 and last < len(storage)):
    raise ValueError(f'a tensor of size {size} and stride {stride} exceeds its storage of {len(storage)} numbers')
  strides = tuple(step * storage.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


class _Call:
  """What a pickle may call, and nothing else: it could set attributes of a plain function or class."""

  __slots__ = ('_function',)

  def __init__(self, function: Callable):
    self._function = function

  def __call__(self, *arguments: Any) -> Any:
    return self._function(*arguments)

  def __setstate__(self, state: Any) -> None:
    raise ValueError('it sets what is called')


_ALLOWED: Mapping[tuple[str, str], Any] = {
  ('numpy.core.multiarray', '_reconstruct'): _Call(_Array),
  ('numpy.core.numeric', '_frombuffer'): _Call(_from_buffer),
  ('numpy', 'ndarray'): 'the type of an array',
  ('numpy', 'dtype'): _Call(_Numbers),
  ('_codecs', 'encode'): _Call(_encoded),
  ('collections', 'OrderedDict'): dict,
  ('haiku._src.data_structures', 'FlatMapping'): dict,
  ('haiku._src.data_structures', 'FlatMap'): dict,
  ('haiku._src.data_structures', 'frozendict'): dict,
  ('torch._utils', '_rebuild_tensor_v2'): _Call(_tensor),
  **{('torch', name): _Storage(np.dtype(dtype)) for name, dtype in _STORAGES.items()},
}
"""All that a pickle may ask for. Haiku's mappings become dicts, so neither Haiku nor PyTorch is needed."""


class _Unpickler(pickle.Unpickler):
  """Builds arrays and mappings; whatever else a pickle names is refused before anything is called."""

  def __init__(self, file: Any, path: Path, storage: Callable[[Any], np.ndarray] | None = None):
    super().__init__(file)
    self._path, self._storage = path, storage

  def find_class(self, module: str, name: str) -> Any:
    module = module.replace('numpy._core', 'numpy.core')
    if (module, name) not in _ALLOWED:
      raise CheckpointError(
        f'{self._path} asks for {module}.{name}, which is neither an array nor a mapping: nothing of it was run. '
        'Do not load this file anywhere else either.'
      )
    return _ALLOWED[module, name]

  def persistent_load(self, reference: Any) -> np.ndarray:
    if self._storage is None:
      raise ValueError('it refers to another file')
    return self._storage(reference)


def _torch(path: Path) -> dict[str, np.ndarray]:
  """The tensors of a zip file of `torch.save`."""
  with zipfile.ZipFile(path) as archive:
    content = next(name for name in archive.namelist() if name.endswith('data.pkl'))
    storages = {}

    def storage(reference: Any) -> np.ndarray:
      _, kind, key, _, size = reference
      if key not in storages:
        data = np.frombuffer(archive.read(f'{content.removesuffix("data.pkl")}data/{key}'), kind.dtype)
        if len(data) != size:
          raise ValueError(f'storage {key} has {len(data)} numbers instead of {size}')
        storages[key] = data
      return storages[key]

    with archive.open(content) as file:
      return dict(_Unpickler(file, path, storage).load())
