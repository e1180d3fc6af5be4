"""Pictures of flow fields: the Middlebury colour wheel, arrows, what a warp brings back, and where the errors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from perceiver_lib.modalities.optical_flow import warp
from perceiver_lib.plots import theme
from perceiver_lib.scores.flow import end_point_error

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.image import AxesImage

# Hues from red over yellow, green, cyan, blue and magenta back to red; the steps between two of them are fewer where
# the eye tells colours apart less well (Baker et al., IJCV 2011).
_HUES = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.float64)
_STEPS = np.array([15, 6, 4, 11, 13, 6])


def flow_colours(
  flow: Float[np.ndarray, 'h w 2'], *, largest: float | None = None, valid: Bool[np.ndarray, 'h w'] | None = None
) -> UInt8[np.ndarray, 'h w 3']:
  """The colours of the Middlebury benchmark: direction is hue, speed is saturation, no motion is white.

  Right is red, down yellow, left cyan-blue, up violet.

  Args:
    flow: (right, down) in pixels.
    largest: pixels of motion at full saturation, None = the largest in the field; longer vectors are darker.
    valid: other pixels are black.
  """
  flow = np.asarray(flow, np.float64)
  shown = np.ones(flow.shape[:2], bool) if valid is None else np.asarray(valid)
  flow = np.where(shown[..., None], flow, 0)
  speed = np.linalg.norm(flow, axis=-1)
  speed = (speed / (largest or max(speed.max(), 1e-6)))[..., None]
  # The benchmark spreads 54 steps over the circle, clockwise on the screen from the right.
  step = (np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1) * (_STEPS.sum() - 1)
  knots = np.concatenate([[0], np.cumsum(_STEPS)])
  hue = np.stack([np.interp(step, knots, _HUES[:, channel]) for channel in range(3)], -1)
  # Rounding must not darken the longest vector itself.
  colour = np.where(speed <= 1 + 1e-5, 1 - speed * (1 - hue), 0.75 * hue)
  return np.rint(255 * colour * shown[..., None]).astype(np.uint8)


def draw_colour_wheel(axes: Axes, rim: str) -> None:
  """The legend of `flow_colours`: the colour at each place is the motion from the centre to there.

  Args:
    rim: what the full colours of the rim stand for, such as '3.8 px'.
  """
  right, down = np.meshgrid(*2 * [np.linspace(-1, 1, 201)])
  inside = right**2 + down**2 <= 1
  wheel = flow_colours(np.stack([right, down], -1), largest=1.0, valid=inside)
  axes.imshow(np.where(inside[..., None], wheel, 255), extent=(-1, 1, 1, -1))
  for x, y, name in ((1, 0, 'right'), (0, 1, 'down'), (-1, 0, 'left'), (0, -1, 'up')):
    axes.annotate(
      '', xy=(0.8 * x, 0.8 * y), xytext=(0, 0), arrowprops={'arrowstyle': '->', 'color': 'black', 'linewidth': 0.8}
    )
    axes.text(1.2 * x, 1.2 * y, name, ha='center', va='center', fontsize=8, rotation=-90 * x)
  axes.set(xlim=(-1.4, 1.4), ylim=(1.4, -1.4))
  axes.set_title(f'rim = {rim}', fontsize=9)
  axes.set_axis_off()


def draw_arrows(
  axes: Axes, image: Num[np.ndarray, 'h w 3'], flow: Float[np.ndarray, 'h w 2'], across: int = 12
) -> None:
  """Arrows in true length on the image (0..255), `across` to the longer side; the tail is on the pixel that moves."""
  height, width = flow.shape[:2]
  step = max(1, -(-max(height, width) // across))
  rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
  right, down = flow[rows, columns, 0], flow[rows, columns, 1]
  axes.imshow(_bytes(image))
  axes.quiver(
    *(columns, rows, right, down),
    **{
      'angles': 'xy',
      'scale_units': 'xy',
      'scale': 1,
      'width': 0.012,
      'color': 'white',
      'edgecolor': 'black',
      'linewidth': 0.4,
    },
  )


def plot_flow(
  frames: Num[np.ndarray, '2 h w 3'],
  truth: Float[np.ndarray, 'h w 2'],
  predictions: Mapping[str, Float[np.ndarray, 'h w 2']],
  *,
  valid: Bool[np.ndarray, 'h w'] | None = None,
) -> Figure:
  """One pair: the truth and every prediction as colours, as arrows, as a warp of frame 2, and their errors.

  All flows share one colour scale, all errors another. A good flow makes frame 2, warped, look like frame 1, except
  where frame 2 hides what frame 1 shows.

  Args:
    frames: in 0..255.
    truth: (right, down) in pixels.
    predictions: flows by the name to print above them.
    valid: pixels with truth; None = all.
  """
  frames, truth = np.asarray(frames, np.float32), np.asarray(truth, np.float32)
  valid = np.ones(truth.shape[:2], bool) if valid is None else np.asarray(valid)
  truth = np.where(valid[..., None], truth, 0)
  predictions = {name: np.asarray(flow, np.float32) for name, flow in predictions.items()}
  largest = max(float(np.linalg.norm(truth, axis=-1).max()), 1e-6)
  columns = {'truth': truth, **predictions}
  height, width = truth.shape[:2]
  with theme.use_theme():
    figure = theme.new_figure(5 * (0.25 + 2.0 * min(height / width, 1.2)), width=2.1 * (1 + len(columns)))
    axes = figure.subplots(5, 1 + len(columns))
    draw_colour_wheel(axes[0, 0], f'{largest:.1f} px')
    for place, image, title in (
      (axes[1, 0], _bytes(frames[0]), 'frame 1'),
      (axes[2, 0], _bytes(frames[1]), 'frame 2'),
      (axes[3, 0], _difference(frames[0], frames[1]), '|frame 1 - frame 2|'),
    ):
      place.imshow(image, **_GREY_LEVELS)
      place.set_title(title, fontsize=9)
    means = {}
    for index, (name, flow) in enumerate(columns.items(), start=1):
      warped = np.asarray(warp(frames[1], flow))
      # Beside the errors, the truth column shows what an answer of no motion would get.
      compared, label = (np.zeros_like(truth), 'error of no motion') if index == 1 else (flow, 'end-point error')
      error = np.where(valid, np.asarray(end_point_error(compared, truth)), np.nan)
      means['no motion' if index == 1 else name] = np.nanmean(error)
      axes[0, index].imshow(flow_colours(flow, largest=largest, valid=valid if index == 1 else None))
      draw_arrows(axes[1, index], frames[0], flow)
      axes[2, index].imshow(_bytes(warped))
      axes[3, index].imshow(_difference(frames[0], warped), **_GREY_LEVELS)
      shown = axes[4, index].imshow(error, cmap=theme.SEQUENTIAL, vmin=0, vmax=largest)
      below = (
        name,
        'arrows on frame 1',
        'frame 2 warped',
        '|frame 1 - warped|',
        f'{label}: {np.nanmean(error):.2f} px',
      )
      for place, title in zip(axes[:, index], below, strict=True):
        place.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=axes[4, 0], location='left', label='pixels', fraction=0.3)
    for place in axes.flat:
      place.set_axis_off()
  errors = ', '.join(f'{name} {mean:.2f}' for name, mean in means.items())
  return theme.describe(
    figure,
    f'A pair of frames: flow in colours and as arrows, frame 2 warped back, error maps. Mean error (px): {errors}.',
  )


def pairs_figure(pairs: Mapping[str, np.ndarray], names: Sequence[str], *, title: str) -> Figure:
  """Both frames of some pairs and their flow, each in colours of its own scale.

  Args:
    pairs: 'frames' `[n, 2, h, w, 3]` in 0..255 and 'flow' `[n, h, w, 2]`.
    names: to print above each pair.
  """
  with theme.use_theme():
    figure = theme.new_figure(3.9, title=title)
    axes = figure.subplots(3, len(names) + 1, width_ratios=[1] * len(names) + [1.2], squeeze=False)
    for column, (name, (first, second), flow) in enumerate(zip(names, pairs['frames'], pairs['flow'], strict=True)):
      largest = float(np.linalg.norm(flow, axis=-1).max())
      for place, picture in zip(axes[:, column], (first, second, flow), strict=True):
        _draw_panel(place, picture, largest)
      axes[0, column].set_title(name, fontsize=9)
      axes[2, column].set_title(f'up to {largest:.1f} px', fontsize=9)
    for row, name in enumerate(['frame 1', 'frame 2', 'flow 1 to 2']):
      axes[row, 0].set_ylabel(name)
      axes[row, -1].set_axis_off()
    draw_colour_wheel(axes[2, -1], 'largest motion')
  return theme.describe(figure, f'{title}. {"; ".join(names)}: both frames and the flow in colours.')


def panels(
  pictures: Mapping[str, np.ndarray], *, title: str, columns: int, height: float, largest: float | None = None
) -> Figure:
  """Pictures of any kind by the name to print above them, row by row.

  Args:
    pictures: frames `[h, w, 3]` in 0..255; flows `[h, w, 2]` in colours; bool `[h, w]`, grey where True; other maps
      `[h, w]`, each with a colour bar of its own from 0.
    height: of the figure in inches.
    largest: pixels of motion at full colour, for all flows; None = each has its own.
  """
  with theme.use_theme():
    figure = theme.new_figure(height, title=title)
    axes = figure.subplots(-(-len(pictures) // columns), columns, squeeze=False)
    for place in axes.flat[len(pictures) :]:
      place.set_axis_off()
    for place, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
      shown = _draw_panel(place, picture, largest)
      place.set_title(name, fontsize=9)
      if picture.ndim == 2 and picture.dtype != bool:
        figure.colorbar(shown, ax=place, shrink=0.7)
  return theme.describe(figure, f'{title}: {"; ".join(pictures)}.')


def _draw_panel(axes: Axes, picture: np.ndarray, largest: float | None) -> AxesImage:
  theme.hide_ticks(axes)
  if picture.ndim == 3:
    return axes.imshow(_bytes(picture) if picture.shape[-1] == 3 else flow_colours(picture, largest=largest))
  if picture.dtype == bool:
    return axes.imshow(0.6 * picture, cmap='gray', vmin=0, vmax=1)
  return axes.imshow(picture, cmap=theme.SEQUENTIAL, vmin=0)


_GREY_LEVELS = {'cmap': 'gray', 'vmin': 0, 'vmax': 128}


def _bytes(image: Num[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w 3']:
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _difference(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, 'h w']:
  return np.abs(first - second).mean(-1)
