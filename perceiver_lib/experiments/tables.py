"""The one Markdown table: in notebooks, in the terminal, in README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A bar inside a cell is escaped."""
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in line) + ' |' for line in lines)


class Table:
  """A table that a notebook shows as one and a terminal as text."""

  def __init__(self, header: Sequence[str], rows: Sequence[Sequence[Any]]):
    self.header, self.rows = list(header), [list(row) for row in rows]

  def __repr__(self) -> str:
    return markdown(self.header, self.rows)

  def _repr_markdown_(self) -> str:
    return markdown(self.header, self.rows)
