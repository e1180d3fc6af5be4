"""Tokens with a time, and the one attention rule that every model of the family obeys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num

AnyArray = Array | np.ndarray

SOURCE_TIME = int(np.iinfo(np.int32).min)
"""The time of a key that every query may attend to, such as the source of a sequence-to-sequence pair."""


def float_type() -> np.dtype:
  """What parameters, positions and channels are made in: float32, or float64 where JAX computes in 64 bits."""
  return np.dtype(jax.dtypes.canonicalize_dtype(float))


def sum_type(*arrays: Array) -> np.dtype:
  """What sums over these arrays are made in: float32, or float64 if one of them is."""
  return np.dtype(np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32)


def pytree_dataclass(*, static: tuple[str, ...] = ()) -> Callable[[type], type]:
  """A frozen keyword-only dataclass that JAX takes apart and puts together; `static` fields are part of its structure.

  JAX also puts together trees of placeholders, which are no arrays; hence it bypasses `__init__` and its checks.
  """

  def decorate(cls: type) -> type:
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    data = [name for name in names if name not in static]

    def flatten(node):
      return [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in data], tuple(
        getattr(node, name) for name in static
      )

    def unflatten(meta, leaves):
      node = object.__new__(cls)
      for name, value in [*zip(data, leaves, strict=True), *zip(static, meta, strict=True)]:
        object.__setattr__(node, name, value)
      return node

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls

  return decorate


@pytree_dataclass()
class Tokens:
  """A batch of tokens: what each one says, where it is, when it may be known and whether it exists.

  Values stay raw (bytes, pixels, ids) until an input adapter turns them into channels, a chunk at a time.

  Attributes:
    values: `[b, m, ...]`, any dtype.
    position: `[b, m, p]` coordinates (floats in [-1, 1] for Fourier features, integer indices for tables and
      rotary), or `[1, m, p]` where all examples share them. Positions embed or rotate; they never mask.
    time: `[b, m]` int32. Times mask and do nothing else; None = every token is visible to every query.
    valid: `[b, m]` bool, False = padding. None = all tokens are valid.

  NumPy arrays become JAX arrays here, because an index of JAX cannot be looked up in a NumPy array.

  Raises:
    ValueError: for 64-bit integers that do not fit where JAX keeps 32 bits.
  """

  values: Num[AnyArray, 'b m ...']
  position: Num[AnyArray, '#b m p'] | None = None
  time: Int[AnyArray, 'b m'] | None = None
  valid: Bool[AnyArray, 'b m'] | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if isinstance(array := getattr(self, field.name), np.ndarray):
        converted = jnp.asarray(array)
        if array.dtype.kind in 'iu' and (array.astype(converted.dtype) != array).any():
          raise ValueError(f'Tokens.{field.name} must fit into {converted.dtype}; got {array.min()} to {array.max()}.')
        object.__setattr__(self, field.name, converted)

  @property
  def batch_size(self) -> int:
    return self.values.shape[0]

  @property
  def num_tokens(self) -> int:
    return self.values.shape[1]

  def checked(self, name: str = 'tokens') -> Tokens:
    """Returns these tokens, or raises a ValueError that names the field whose shape or dtype is wrong."""
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(self)):
      return dataclasses.replace(self).checked(name)  # JAX put them together, which bypasses `__init__`
    if jnp.ndim(self.values) < 2:
      raise ValueError(f'{name}.values must be [batch, tokens, ...]; got shape {jnp.shape(self.values)}.')
    b, m = self.values.shape[:2]
    if not b or not m:
      raise ValueError(f'{name} must hold at least one example and one token; got values of {self.values.shape}.')
    if self.position is not None:
      shape = self.position.shape
      if len(shape) != 3 or shape[0] not in (1, b) or shape[1] != m:
        raise ValueError(f'{name}.position must be [{b} or 1, {m}, axes]; got shape {shape}.')
    for field, array, kind in (('time', self.time, jnp.integer), ('valid', self.valid, jnp.bool_)):
      if array is None:
        continue
      if array.shape != (b, m):
        raise ValueError(f'{name}.{field} must be [{b}, {m}], one entry a token; got shape {array.shape}.')
      if not jnp.issubdtype(array.dtype, kind):
        raise ValueError(f'{name}.{field} must be {kind.__name__}; got {array.dtype}.')
    return self


def may_attend(
  query_time: Int[Array, 'b i'] | None,
  key_time: Int[Array, 'b j'] | None,
  key_valid: Bool[Array, 'b j'] | None,
) -> Bool[Array, 'b #i j'] | None:
  """The rule: a query may attend to a key iff valid(key) and time(key) <= time(query).

  With query times 0 1 1 and key times 0 1 2 S (S = SOURCE_TIME), all keys valid:

      query 0   # . . #
      query 1   # # . #
      query 1   # # . #

  Returns:
    The mask with True = may attend (its query axis has size 1 where it does not depend on the query), or None where
    everything is allowed.

  Raises:
    ValueError: if only one side carries time. Queries without time over timed keys would read the future.
  """
  if (query_time is None) != (key_time is None):
    missing = 'queries' if query_time is None else 'keys'
    raise ValueError(f'Queries and keys must both carry time, or neither may; the {missing} here carry none.')
  mask = None if key_valid is None else key_valid[:, None, :]
  if query_time is not None:
    in_time = key_time[:, None, :] <= query_time[:, :, None]
    mask = in_time if mask is None else mask & in_time
  return mask


def readable(tokens: Tokens, last: Int[Array, '#b 1'] | int, *, after: int | None = None) -> Tokens:
  """The same tokens, with those that no query may read marked as padding, whose content reaches no gradient.

  Args:
    last: time of the last query.
    after: tokens of this time and earlier ones are not read, the source excepted. None = they are.
  """
  seen = tokens.time <= last
  if after is not None:
    seen &= (tokens.time > after) | (tokens.time == SOURCE_TIME)
  return dataclasses.replace(tokens, valid=seen if tokens.valid is None else seen & tokens.valid)


def refuse_empty(inputs: Tokens | Mapping[str, Tokens]) -> None:
  """Raises a ValueError for an example without any valid token, where validity is known."""
  sources = [inputs] if isinstance(inputs, Tokens) else list(inputs.values())
  known = [source.valid for source in sources]
  if any(valid is None or isinstance(valid, jax.core.Tracer) for valid in known):
    return
  per_example = sum(np.asarray(source.checked('inputs').valid).sum(1) for source in sources)
  if not per_example.all():
    raise ValueError(
      f'Every example needs at least one valid token of its {sum(source.num_tokens for source in sources)}; '
      f'example {int(np.argmin(per_example))} of {len(per_example)} has none.'
    )


def zero_invalid(channels: Num[Array, 'b m *c'], valid: Bool[Array, 'b m'] | None) -> Num[Array, 'b m *c']:
  """Zeroes padding on entry, so that NaN or garbage in it reaches neither outputs nor gradients (0 x NaN is NaN)."""
  if valid is None:
    return channels
  mask = valid.reshape(valid.shape + (1,) * (channels.ndim - 2))
  return jnp.where(mask, channels, jnp.zeros((), channels.dtype))
