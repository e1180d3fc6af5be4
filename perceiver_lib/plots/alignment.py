"""Which part of a source an output rests on: sources across, outputs down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def alignment_figure(
  examples: Sequence[tuple[Sequence[str], Sequence[str], Float[np.ndarray, 'o m']]],
  *,
  title: str,
  label: str,
  source: str = 'letter',
  target: str = 'phoneme',
) -> Figure:
  """One matrix an example, on one colour scale from zero; each row's largest cell has a dot.

  Args:
    examples: symbols of the source [m], symbols of the outputs [o], and how much each output rests on each of them.
    label: the quantity and its unit.
  """
  highest = max(float(np.max(values)) for _, _, values in examples)
  with theme.use_theme():
    rows = max(len(outputs) for _, outputs, _ in examples)
    figure = theme.new_figure(0.27 * rows + 1.3, title=title)
    widths = [len(letters) for letters, _, _ in examples]
    grid = figure.subplots(1, len(examples), squeeze=False, width_ratios=widths)[0]
    for axes, (letters, outputs, values) in zip(grid, examples, strict=True):
      drawn = axes.imshow(values, cmap=theme.SEQUENTIAL, vmin=0, vmax=highest, aspect='auto')
      axes.scatter(np.argmax(values, axis=1), range(len(outputs)), s=14, color='white', edgecolors='black')
      axes.set_xticks(range(len(letters)), letters)
      axes.set_yticks(range(len(outputs)), outputs)
      axes.tick_params(length=0)
      axes.set_xlabel(source)
    grid[0].set_ylabel(target)
    figure.colorbar(drawn, ax=list(grid), label=label, aspect=20)
  words = '; '.join(
    f'{"".join(letters)}: '
    + ', '.join(f'{o} by {letters[int(i)]}' for o, i in zip(outputs, values.argmax(1), strict=True))
    for letters, outputs, values in examples
  )
  return theme.describe(figure, f'{title}. What each {target} rests on most, {words}.')
