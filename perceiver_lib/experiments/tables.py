"""The one Markdown table: in notebooks, in the terminal, in README."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Cells are Markdown; a bar or a line break in one does not end it, and what is not Markdown has passed `literal`."""
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(map(_cell, line)) + ' |' for line in lines)


def literal(text: str) -> str:
  """A text as Markdown that shows it as it is."""
  return re.sub(r'([\\`*\[\]])', r'\\\1', text).replace('&', '&amp;').replace('<', '&lt;')


def _cell(content: Any) -> str:
  return re.sub(r'(?<!\\)((?:\\\\)*)\|', r'\1\\|', ' '.join(str(content).splitlines()))


class Table:
  """A table that a notebook shows as one and a terminal as text."""

  def __init__(self, header: Sequence[str], rows: Sequence[Sequence[Any]]):
    self.header, self.rows = list(header), [list(row) for row in rows]

  def __repr__(self) -> str:
    return markdown(self.header, self.rows)

  def _repr_markdown_(self) -> str:
    return markdown(self.header, self.rows)
