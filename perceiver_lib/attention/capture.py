"""Attention maps by name: what each query looked at, for any model, without a second code path in the models."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.softmax import attention_weights
from perceiver_lib.tokens import pytree_dataclass

Chosen = slice | Int[np.ndarray, '_']
"""Indices of an axis; a slice is the whole of it."""

_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar('attention_recorder', default=None)


def begins_with(name: str, prefix: str) -> bool:
  """Whether an attention's name starts with another, component by component."""
  return (name + '.').startswith(prefix + '.')


@pytree_dataclass()
class AttentionMap:
  """One attention: softmax weights, and the scaled logits before the softmax (the paper's Fig. 3 shows those)."""

  weights: Float[Array, 'b h i j']
  logits: Float[Array, 'b h i j']


@dataclasses.dataclass(kw_only=True)
class Recorder:
  """Collects maps while a model is traced.

  Attributes:
    names: prefixes of the attentions to keep, None = all.
    heads, queries: indices to keep, None = all. Choosing a few bounds the memory of a map over a long input.
    offered: names of all attentions that were computed.
  """

  names: tuple[str, ...] | None = None
  heads: Sequence[int] | None = None
  queries: Sequence[int] | None = None
  path: tuple[str, ...] = ()
  offered: dict[str, None] = dataclasses.field(default_factory=dict)
  # jit returns a dict sorted by its keys, and an OrderedDict as it was: a rollout needs the order of computation.
  maps: dict[str, AttentionMap] = dataclasses.field(default_factory=collections.OrderedDict)

  @property
  def name(self) -> str:
    return '.'.join(self.path)

  def wanted(self) -> bool:
    self.offered.setdefault(self.name)
    return self.names is None or any(begins_with(self.name, name) for name in self.names)

  def record(self, logits: Float[Array, 'b h i j'], weights: Float[Array, 'b h i j']) -> None:
    name, repeat = self.name, 1
    while name in self.maps:
      name, repeat = f'{self.name}#{repeat}', repeat + 1
    self.maps[name] = AttentionMap(weights=weights, logits=logits)


def _existing(chosen: Sequence[int] | None, size: int) -> Chosen:
  """The indices that exist on an axis of this size; an axis of size 1 stays as it is."""
  if chosen is None or size == 1:
    return slice(None)
  return np.array([index for index in chosen if index < size], np.int32)


def record_weights(
  log_sum_exp: Float[Array, 'b h i'],
  logits: Callable[[Chosen, Chosen], Float[Array, 'b h i j']],
  allowed: Callable[[Chosen], Bool[Array, 'b 1 #i j'] | None],
) -> None:
  """Records the attention that is being computed, if anything asks for it: the one line that an attention needs.

  Args:
    log_sum_exp: of every row of logits.
    logits: makes those of the chosen heads and queries, so that no more than the map itself is ever computed.
    allowed: makes the mask of the chosen queries.
  """
  if (maps := recorder()) is None:
    return
  heads, queries = _existing(maps.heads, log_sum_exp.shape[1]), _existing(maps.queries, log_sum_exp.shape[2])
  rows = logits(heads, queries)
  maps.record(rows, attention_weights(rows, allowed(queries), log_sum_exp[:, heads][:, :, queries]))


def record_apart(run: Callable[[Chosen], Any], num_queries: int) -> None:
  """Runs the chosen queries by themselves as well, for their maps, because no map can leave a loop's body."""
  if (maps := recorder()) is not None:
    with recording_into(dataclasses.replace(maps, queries=None)):
      run(_existing(maps.queries, num_queries))


def recorder() -> Recorder | None:
  """The recorder of the attention that is being computed, or None where nothing asks for it."""
  current = _recorder.get()
  return current if current is not None and current.wanted() else None


def records_all_queries() -> bool:
  """Whether the map of every query is asked for, so that there is nothing to save by chunks of queries."""
  current = recorder()
  return current is not None and current.queries is None


def recording() -> bool:
  """Whether maps are being collected. Layers then run in a plain loop, because no map can leave a scan's body."""
  return _recorder.get() is not None


@contextlib.contextmanager
def recording_into(new: Recorder | None) -> Iterator[None]:
  """Attentions computed inside are recorded there; None = not at all, as a loop's body needs."""
  token = _recorder.set(new)
  try:
    yield
  finally:
    _recorder.reset(token)


@contextlib.contextmanager
def named(*parts: str | int) -> Iterator[None]:
  """Names the attentions computed inside, for example `encoder.cross_attention.0`."""
  current = _recorder.get()
  if current is None:
    yield
    return
  before, current.path = current.path, (*current.path, *map(str, parts))
  try:
    yield
  finally:
    current.path = before


def capture_attention(
  function: Callable[..., Any],
  *,
  names: Sequence[str] | None = None,
  heads: Sequence[int] | None = None,
  queries: Sequence[int] | None = None,
) -> Callable[..., tuple[Any, dict[str, AttentionMap]]]:
  """Wraps a model, or any function that calls one, so that it also returns its attention maps by name.

  Names are `encoder.cross_attention.0`, `processor.3`, `decoder`; an attention that runs again, such as a second
  decoding, counts on: `decoder#1`. The outputs equal those of the plain call: a map is read beside the computation,
  which goes on unchanged. No map leaves the body of a loop, so a step of generation is captured by itself; one of the
  unified model has no map of its read, because that cache keeps sums in place of keys.

  Args:
    function: called with the arguments of the returned function; jit outside of this, not inside.
    names: keep only the attentions whose name starts with one of these, component by component.
    heads: keep these heads only.
    queries: keep these latents (or output queries) only; needed for long inputs, where a whole map is large.

  Returns:
    A function that returns `(output of function, {name: AttentionMap})`, in the order of computation.

  Raises:
    ValueError: for one string in place of several names, and, when called, for a name that no attention begins with.
  """
  if isinstance(names, str):
    raise ValueError(f'names must be a sequence of names, such as [{names!r}]; got the string {names!r}.')

  def captured(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, AttentionMap]]:
    new = Recorder(names=None if names is None else tuple(names), heads=heads, queries=queries)
    with recording_into(new):
      output = function(*args, **kwargs)
    if unknown := [name for name in new.names or () if not any(begins_with(known, name) for known in new.offered)]:
      raise ValueError(f'There is no attention named {unknown[0]!r}; there are {", ".join(new.offered)}.')
    return output, new.maps

  return captured
