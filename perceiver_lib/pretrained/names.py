"""From the paths of a model's arrays to the names and layouts of a source: one table a source, read both ways."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
  """How an array of a source is seen as ours, and ours as theirs; both are views."""

  ours: Callable[[np.ndarray], np.ndarray]
  theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda array: array, lambda array: array)
TRANSPOSED = Layout(np.transpose, np.transpose)


def with_axes(*axes: int) -> Layout:
  """Theirs has further axes of size 1 at these places."""
  return Layout(lambda array: np.squeeze(array, axes), lambda array: np.expand_dims(array, axes))


def permuted(*axes: int) -> Layout:
  """Ours is theirs with its axes in this order."""
  return Layout(lambda array: array.transpose(axes), lambda array: array.transpose(np.argsort(axes)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameTable:
  """The names of a source.

  Attributes:
    parts: paths of a model's modules, or of whole arrays, with their names; a * on both sides is any one word. A name
      may come with a layout, for an array.
    layers: modules inside an attention layer.
    leaves: of linear layers 'kernel' and 'bias', of layer norms 'scale' and 'offset'.
    separator: between the words of a name.
    ignored: ends of names of arrays that a file may hold and that follow from its sizes, or count something.
  """

  parts: Mapping[str, str | tuple[str, Layout]]
  layers: Mapping[str, str]
  leaves: Mapping[str, tuple[str, Layout]]
  separator: str = '.'
  ignored: tuple[str, ...] = ()

  def names(self, paths: Iterable[str]) -> dict[str, tuple[str, Layout]]:
    """The name and the layout of every path; raises a ValueError for an array that the source has no name for."""
    patterns = [
      (re.compile(re.escape(key).replace(r'\*', r'([^.]+)') + r'(?:\.(.+))?'), key)
      for key in sorted(self.parts, key=len, reverse=True)
    ]
    return {path: self._name(path, patterns) for path in paths}

  def _name(self, path: str, patterns: list[tuple[re.Pattern, str]]) -> tuple[str, Layout]:
    match, key = next(((found, key) for pattern, key in patterns if (found := pattern.fullmatch(path))), (None, ''))
    if match is None:
      raise ValueError(f'This source has no models with an array {path!r}.')
    *words, rest = match.groups()
    name, layout = part if isinstance(part := self.parts[key], tuple) else (part, SAME)
    for word in words:
      name = name.replace('*', word)
    if rest is None:
      return name, layout
    module, _, leaf = rest.rpartition('.')
    leaf = 'offset' if leaf == 'bias' and (module or key).endswith('norm') else leaf
    leaf_name, layout = self.leaves[leaf]
    return self.separator.join([name, *([self.layers[module]] if module else []), leaf_name]), layout
