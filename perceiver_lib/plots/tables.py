"""Results beside baselines and the paper as a small table that notebooks show as HTML and terminals as Markdown."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Literal

_HEADER = ('metric', 'measured', 'baseline', 'paper', 'scale: here / paper', 'status')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """One measured number and what it must be read against.

  Attributes:
    metric: what was measured, on which split.
    measured: the value, the values over seeds (shown as median and range), or None if it was not run.
    unit: '%' or 'bits per byte' and the like; '' for a pure number.
    baseline: name of the strongest simple method.
    baseline_value: its value in the same unit.
    paper: where the published value is from, such as 'Perceiver, table 1'; '' if there is none.
    paper_value: in the same unit.
    scale: how far apart the two experiments are, 'here / paper': required beside a paper value.
    status: how the measured value relates to the paper's.
  """

  metric: str
  measured: float | Sequence[float] | None
  unit: str = ''
  baseline: str
  baseline_value: float
  paper: str = ''
  paper_value: float | None = None
  scale: str = ''
  status: Literal['matches', 'same trend', 'not comparable', 'not run', 'no paper value']

  def __post_init__(self):
    if self.paper_value is not None and not (self.paper and self.scale):
      raise ValueError(f'{self.metric}: a paper value needs its source (paper=...) and the gap in scale (scale=...).')
    if (self.measured is None) != (self.status == 'not run'):
      raise ValueError(f"{self.metric}: status 'not run' and measured=None go together; got {self.status!r}.")
    if self.measured is not None and (self.paper_value is None) != (self.status == 'no paper value'):
      raise ValueError(f"{self.metric}: without a paper value the status is 'no paper value'; got {self.status!r}.")

  def cells(self) -> tuple[str, ...]:
    """The row as text, in the order of the table's header."""
    paper = '' if self.paper_value is None else f'{self._number(self.paper_value)} ({self.paper})'
    baseline = f'{self._number(self.baseline_value)} ({self.baseline})'
    return self.metric, self._measured(), baseline, paper, self.scale, self.status

  def _measured(self) -> str:
    if self.measured is None:
      return 'not run'
    if isinstance(self.measured, Sequence):
      ordered = sorted(self.measured)
      half = len(ordered) // 2
      median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
      return f'{self._number(median)} [{ordered[0]:.4g} … {ordered[-1]:.4g}, {len(ordered)} seeds]'
    return self._number(self.measured)

  def _number(self, value: float) -> str:
    return f'{value:.4g}{"" if self.unit in ("", "%") else " "}{self.unit}'


@dataclasses.dataclass(frozen=True)
class ResultTable:
  """Rows of results; Jupyter shows it as HTML, `print` as Markdown.

  Attributes:
    rows: the results, in the order shown.
    caption: what was run: profile, device, seeds. Never left out, so that no smoke number looks like a reproduction.
  """

  rows: Sequence[Result]
  caption: str

  def __post_init__(self):
    if not self.rows or not self.caption.strip():
      raise ValueError('A result table needs at least one row, and a caption that says what was run.')

  def __str__(self) -> str:
    lines = [_HEADER, tuple('---' for _ in _HEADER), *(row.cells() for row in self.rows)]
    body = '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)
    return f'{self.caption}\n\n{body}'

  def _repr_markdown_(self) -> str:
    return str(self)

  def _repr_html_(self) -> str:
    style = 'style="text-align:left;vertical-align:top"'
    head = ''.join(f'<th scope="col" {style}>{cell}</th>' for cell in _HEADER)
    body = ''.join(
      '<tr>' + ''.join(f'<td {style}>{html.escape(cell)}</td>' for cell in row.cells()) + '</tr>' for row in self.rows
    )
    caption = f'<caption style="text-align:left">{html.escape(self.caption)}</caption>'
    return f'<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
