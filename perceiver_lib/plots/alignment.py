"""Which part of a source an output rests on: sources across, outputs down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from perceiver_lib.plots import theme
from perceiver_lib.plots.grid import map_grid

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
  rows = max(len(outputs) for _, outputs, _ in examples)
  figure, places = map_grid(
    [values for _, _, values in examples],
    [''] * len(examples),
    title=title,
    label=label,
    columns=len(examples),
    panel_height=0.27 * rows + 0.5,
    square=False,
    x_label=source,
    y_label=target,
    width_ratios=[len(letters) for letters, _, _ in examples],
  )
  for axes, (letters, outputs, values) in zip(places, examples, strict=True):
    axes.scatter(np.argmax(values, axis=1), range(len(outputs)), s=14, color='white', edgecolors='black')
    axes.set_xticks(range(len(letters)), letters)
    axes.set_yticks(range(len(outputs)), outputs)
    axes.tick_params(length=0, labelleft=True)
  words = '; '.join(
    f'{"".join(letters)}: '
    + ', '.join(f'{o} by {letters[int(i)]}' for o, i in zip(outputs, values.argmax(1), strict=True))
    for letters, outputs, values in examples
  )
  return theme.describe(figure, f'{title}. What each {target} rests on most, {words}.')
