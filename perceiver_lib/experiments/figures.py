"""Saving a Matplotlib figure so that it can be trusted later: not blank, described in words, stamped with its run."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.training.progress import in_notebook

DOTS_PER_INCH = 150
LARGEST_SVG_BYTES = 200_000


def save_figure_files(figure: Any, folder: Path, slug: str, *, alt: str, stamp: Mapping[str, str]) -> list[str]:
  """Writes `slug.png`, and `slug.svg` where that is small; returns the file names.

  Args:
    figure: a matplotlib Figure.
    folder: where to write; it is made.
    slug: file name without suffix.
    alt: what the figure shows, for people who can't see it; stored as the file's description.
    stamp: where it comes from (notebook, profile, seed, commit); stored in the PNG's text chunks.

  Raises:
    RequestError: if the figure is blank.
  """
  import matplotlib

  with matplotlib.rc_context({'svg.hashsalt': slug, 'svg.fonttype': 'path'}):
    if is_blank(figure):
      raise RequestError(f'Figure {slug!r} is blank: none of its axes shows anything; draw it before saving it.')
    folder.mkdir(parents=True, exist_ok=True)
    source = ', '.join(f'{name} {value}' for name, value in stamp.items())
    figure.savefig(
      folder / f'{slug}.png',
      dpi=DOTS_PER_INCH,
      bbox_inches='tight',
      metadata={'Title': slug, 'Description': alt, 'Source': source},
    )
    vector = io.BytesIO()
    figure.savefig(
      vector,
      format='svg',
      bbox_inches='tight',
      metadata={'Title': slug, 'Description': alt, 'Source': source, 'Date': None},
    )
  if vector.tell() > LARGEST_SVG_BYTES:
    return [f'{slug}.png']
  (folder / f'{slug}.svg').write_bytes(vector.getvalue())
  return [f'{slug}.png', f'{slug}.svg']


def is_blank(figure: Any) -> bool:
  """Whether a figure shows nothing: every visible axes (colour bars aside) has one colour inside its frame.

  Catches empty axes, images of a constant and lines of NaN, which all look like success to a program. A heat map whose
  colours run between given ends (`vmin`, `vmax`) says something even where all its values are the same.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  pixels = np.asarray(canvas.buffer_rgba())[..., :3]
  height = pixels.shape[0]
  shown = [axes for axes in figure.get_axes() if axes.get_visible() and axes.get_label() != '<colorbar>']
  if not shown:
    return not _varies(pixels)
  for axes in shown:
    if any(_on_a_scale(child) for child in axes.get_children()):
      return False
    box = axes.get_window_extent()
    left, right = int(box.x0) + 3, int(box.x1) - 3
    top, bottom = height - int(box.y1) + 3, height - int(box.y0) - 3
    if _varies(pixels[max(top, 0) : bottom, max(left, 0) : right]):
      return False
  return True


def show_in_notebook(figure: Any, png: Path, alt: str) -> None:
  """Shows the saved picture itself as the cell's output, once, with its alt text; nothing outside of a notebook."""
  if (pyplot := sys.modules.get('matplotlib.pyplot')) is not None:
    pyplot.close(figure)  # else the inline backend would show the figure a second time
  if not in_notebook():
    return
  from IPython.display import Image, display

  width = round(figure.get_size_inches()[0] * 96)
  display(Image(png.read_bytes(), width=width, alt=alt))


def _on_a_scale(artist: Any) -> bool:
  """Whether it maps numbers to colours between ends that were given, and do not follow from the numbers."""
  values = artist.get_array() if hasattr(artist, 'get_clim') else None
  finite = np.ma.masked_invalid([] if values is None or np.ndim(values) == 3 else values).compressed()
  if not finite.size:
    return False
  low, high = finite.min(), finite.max()
  margin = (0.1 * abs(low) or 0.1) if low == high else 0.0  # by which a colour bar moves equal ends apart
  return not any(np.allclose(artist.get_clim(), own) for own in ((low, high), (low - margin, high + margin)))


def _varies(pixels: np.ndarray) -> bool:
  return pixels.size > 0 and int(np.ptp(pixels.reshape(-1, 3), axis=0).max()) > 8
