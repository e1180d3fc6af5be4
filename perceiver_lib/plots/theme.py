"""One look for every figure: colours that colour-blind readers can tell apart, text of 9 points or more, alt text."""

from __future__ import annotations

import contextlib
import functools
import io
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too pale for lines on white.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK = PALETTE = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#E69F00',
  '#CC79A7',
  '#56B4E9',
  '#000000',
)
GREY, PALE = '#6E6E6E', '#E8E8E8'
SEQUENTIAL = 'cividis'
"""Colour map of magnitudes; perceptually uniform, and the same to readers with and without colour vision."""

DIVERGING = 'PuOr_r'
"""Colour map of what lies on both sides of zero; safe for colour-blind readers."""

NOTEBOOK_WIDTH = 8.0
"""Inches; a figure this wide is shown unscaled, so that a point of text stays a point."""

_RC = {
  'font.size': 10,
  'axes.titlesize': 10,
  'axes.labelsize': 10,
  'xtick.labelsize': 9,
  'ytick.labelsize': 9,
  'legend.fontsize': 9,
  'legend.frameon': False,
  'figure.titlesize': 11,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlelocation': 'left',
  'image.interpolation': 'nearest',
  'lines.linewidth': 1.8,
}


@contextlib.contextmanager
def use_theme() -> Iterator[None]:
  """Applies the style to figures made inside the `with` block, also to figures of a notebook's own."""
  import matplotlib
  from cycler import cycler

  with matplotlib.rc_context(_RC | {'axes.prop_cycle': cycler(color=list(PALETTE))}):
    yield


def new_figure(height: float, *, title: str = '', width: float = NOTEBOOK_WIDTH) -> Figure:
  """An empty figure of `width` x `height` inches. Call it inside `use_theme()`.

  The figure does not belong to pyplot: nothing is shown twice and nothing has to be closed. A notebook shows it when it
  is a cell's last expression, or by `run.save_figure`.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=110, layout='constrained')
  figure._repr_png_ = functools.partial(_png, figure)  # without pyplot, Jupyter knows no other way to show a figure
  if title:
    figure.suptitle(textwrap.fill(title, int(12 * width)), x=0.01, horizontalalignment='left')
  return figure


def _png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', bbox_inches='tight')
  return buffer.getvalue()


def hide_ticks(axes: Axes) -> None:
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)


def describe(figure: Figure, alt_text: str) -> Figure:
  """The figure, with the sentence that a reader who cannot see it gets, as its attribute `alt_text`.

  Every function of this package that makes a figure describes it; `run.save_figure` and HTML exports show the sentence.

  Raises:
    ValueError: for an empty sentence.
  """
  if not alt_text.strip():
    raise ValueError('Alt text must say in a sentence what the figure shows; got an empty string.')
  figure.alt_text = ' '.join(alt_text.split())
  return figure
