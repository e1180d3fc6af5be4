"""Pictures of the attention rule: the same matrix as text, as a figure, and for the four models side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from perceiver_lib.plots import interactive, theme
from perceiver_lib.tokens import SOURCE_TIME, may_attend

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Times = Sequence[int] | np.ndarray | None

_VISIBLE, _LATER, _PADDING = 0, 1, 2
_MEANINGS = ('may attend', 'later than the query', 'padding')
_COLOURS = (theme.BLUE, theme.PALE, theme.ORANGE)


def _reasons(num_queries: int, num_keys: int, query_time: Times, key_time: Times, key_valid: Times) -> np.ndarray:
  """For each query and key whether it is visible, and if not, why."""

  def batched(values, dtype):
    return None if values is None else jnp.asarray(values, dtype)[None]

  def allowed(valid):
    mask = may_attend(batched(query_time, jnp.int32), batched(key_time, jnp.int32), valid)
    return np.broadcast_to(True if mask is None else np.asarray(mask[0]), (num_queries, num_keys))

  visible, in_time = allowed(batched(key_valid, jnp.bool_)), allowed(None)
  return np.where(visible, _VISIBLE, np.where(in_time, _PADDING, _LATER))


def _time_labels(times: Times, count: int) -> list[str]:
  if times is None:
    return [''] * count
  return ['S' if time == SOURCE_TIME else str(int(time)) for time in times]


def render_mask(
  query_time: Times,
  key_time: Times,
  key_valid: Sequence[bool] | np.ndarray | None = None,
  *,
  num_queries: int | None = None,
  num_keys: int | None = None,
  title: str = 'Who may attend to whom',
) -> tuple[str, Figure]:
  """The rule for one example, as text and as a figure.

  With query times 0 1 1 and key times 0 1 2 S (S = SOURCE_TIME) the text is

      query 0   # . . #
      query 1   # # . #
      query 1   # # . #

  Args:
    query_time: integers [i], or None without time.
    key_time: integers [j], or None without time.
    key_valid: bools [j], False = padding; None = all valid.
    num_queries: needed only where there is no query_time.
    num_keys: needed only where there is neither key_time nor key_valid.

  Raises:
    ValueError: if a size cannot be known, or only one side carries time.
  """
  num_queries = num_queries if query_time is None else len(query_time)
  for known in (key_valid, key_time):
    num_keys = num_keys if known is None else len(known)
  if num_queries is None or num_keys is None:
    raise ValueError('Without times the mask has no size; pass num_queries and num_keys.')
  reasons = _reasons(num_queries, num_keys, query_time, key_time, key_valid)
  names = [f'query {label}'.rstrip() for label in _time_labels(query_time, num_queries)]
  width = max(map(len, names)) + 2
  text = '\n'.join(
    f'{name:<{width}} {" ".join("#" if reason == _VISIBLE else "." for reason in row)}'
    for name, row in zip(names, reasons, strict=True)
  )
  with theme.use_theme():
    cell = min(0.45, (theme.NOTEBOOK_WIDTH - 1.5) / num_keys)
    figure = theme.new_figure(max(cell * num_queries, 0.6) + 1.5, title=title)
    axes = figure.add_subplot()
    _draw(axes, reasons, query_time, key_time)
    axes.set_anchor('W')
    axes.set_xlabel('key' if key_time is None else 'key, with its time')
    axes.set_ylabel('query' if query_time is None else 'query, with\nits time')
    _legend(figure, reasons)
  return text, theme.describe(figure, f'{title}. Mask of {num_queries} queries by {num_keys} keys: {text}')


def render_masks(attentions: Mapping[str, tuple[Times, Times, Times]], *, title: str) -> Figure:
  """Several masks side by side, a cell of one size in all of them.

  Args:
    attentions: name -> times of the queries [i], times of the keys [j], validity of the keys [j] or None.
  """
  reasons = {name: _reasons(len(q), len(k), q, k, valid) for name, (q, k, valid) in attentions.items()}
  rows, columns = max(len(r) for r in reasons.values()), [r.shape[1] for r in reasons.values()]
  with theme.use_theme():
    cell = (theme.NOTEBOOK_WIDTH - 0.6 * len(columns)) / sum(columns)
    figure = theme.new_figure(cell * rows + 1.4, title=title)
    grid = figure.subplots(1, len(columns), width_ratios=columns, squeeze=False)[0]
    for axes, (name, (query_time, key_time, _)) in zip(grid, attentions.items(), strict=True):
      _draw(axes, reasons[name], query_time, key_time)
      axes.set_anchor('N')
      axes.set_title(name)
      axes.set_xlabel('key, with its time')
    grid[0].set_ylabel('query, with its time')
    _legend(figure, *reasons.values())
  shares = ', '.join(f'{name}: {np.mean(r == _VISIBLE):.0%} of the pairs' for name, r in reasons.items())
  return theme.describe(figure, f'{title}. Masks side by side; what is allowed, {shares}.')


def _draw(axes: Axes, reasons: np.ndarray, query_time: Times, key_time: Times) -> None:
  from matplotlib.colors import ListedColormap
  from matplotlib.patches import Rectangle

  num_queries, num_keys = reasons.shape
  axes.imshow(reasons, cmap=ListedColormap(_COLOURS), vmin=-0.5, vmax=2.5)
  for row, column in np.argwhere(reasons == _PADDING):
    # Hatching tells padding from visible cells without colour too.
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch='////', edgecolor='white', linewidth=0))
  axes.set_xticks(np.arange(num_keys + 1) - 0.5, minor=True)
  axes.set_yticks(np.arange(num_queries + 1) - 0.5, minor=True)
  axes.grid(which='minor', color='white', linewidth=1.5)
  axes.tick_params(which='both', length=0, labelsize=9)
  axes.set_xticks(range(num_keys), _time_labels(key_time, num_keys))
  axes.set_yticks(range(num_queries), _time_labels(query_time, num_queries))
  axes.spines[:].set_visible(False)


def _legend(figure: Figure, *reasons: np.ndarray) -> None:
  from matplotlib.patches import Patch

  present = sorted(set(np.concatenate([r.ravel() for r in reasons]).tolist()))
  hatches = (None, None, '////')
  handles = [
    Patch(facecolor=_COLOURS[reason], hatch=hatches[reason], edgecolor='white', label=_MEANINGS[reason])
    for reason in present
  ]
  figure.legend(handles=handles, loc='outside lower left', ncols=len(handles))


def _four_models() -> dict[str, list[tuple[str, int, int, Times, Times] | None]]:
  """For each model (row label, number of queries, number of keys, query times, key times) of its three attentions."""
  steps, late = np.repeat(np.arange(4), 2), np.arange(4, 8)
  outputs = np.array([0, 1, 1, 2, 2, 2, 3, 3])
  untimed = [('3 latents', 3, 8, None, None), ('3 latents', 3, 3, None, None)]
  return {
    'Perceiver\nno time': [*untimed, ('mean', 1, 3, None, None)],
    'Perceiver IO\nno time': [*untimed, ('5 outputs', 5, 3, None, None)],
    'Perceiver AR\ntime = place in\nthe sequence': [
      ('4 latents', 4, 8, late, np.arange(8)),
      ('4 latents', 4, 4, late, late),
      None,
    ],
    'Unified\ntime = timestep,\n2 latents each': [
      ('8 latents', 8, 8, steps, steps),
      ('8 latents', 8, 8, steps, steps),
      ('8 outputs', 8, 8, outputs, steps),
    ],
  }


def masks_to_touch() -> interactive.Picture:
  """The masks of `four_model_masks`, one at a time: point at a query, and see what it may read."""
  allowed, queries, keys = {}, [], []
  for model, attentions in _four_models().items():
    for verb, attention in zip(('encoder', 'processor', 'decoder'), attentions, strict=True):
      if attention is None:
        continue
      _, num_queries, num_keys, query_time, key_time = attention
      allowed[f'{model.splitlines()[0]}, {verb}'] = _reasons(num_queries, num_keys, query_time, key_time, None) == 0
      asks, read = 'output' if verb == 'decoder' else 'latent', 'input' if verb == 'encoder' else 'latent'
      for cells, name, times, count in ((queries, asks, query_time, num_queries), (keys, read, key_time, num_keys)):
        labels = [str(place) if times is None else f't{times[place]}' for place in range(count)]
        cells.append(interactive.Cells(name=name, labels=labels, columns=count))
  return interactive.reads(allowed, queries, keys, title='Who may read whom; tN is a time.', axis='attention')


def four_model_masks() -> Figure:
  """Encoder, processor and decoder masks of Perceiver, Perceiver IO, Perceiver AR and the unified model on 8 inputs.

  All twelve pictures are the one rule of `perceiver_lib.tokens`; only the times differ. Perceiver AR's decoder is the
  identity: each latent is its own output.
  """
  models = _four_models()
  with theme.use_theme():
    figure = theme.new_figure(7.4, title='One rule, four models: a query sees valid keys that are no later than itself')
    num_rows = [max(a[1] for a in attentions if a) for attentions in models.values()]
    grid = figure.subplots(4, 3, height_ratios=num_rows)
    drawn = []
    for row, (name, attentions) in enumerate(models.items()):
      for column, attention in enumerate(attentions):
        axes = grid[row, column]
        axes.set_anchor('NW')
        if row == 0:
          verb = ('encoder: latents read inputs', 'processor: latents read latents', 'decoder: outputs read latents')
          axes.set_title(verb[column], pad=12)
        if attention is None:
          theme.hide_ticks(axes)
          axes.text(0, 1, 'identity: each latent\nis its own output', transform=axes.transAxes, va='top')
          continue
        label, num_queries, num_keys, query_time, key_time = attention
        reasons = _reasons(num_queries, num_keys, query_time, key_time, None)
        drawn.append(reasons)
        _draw(axes, reasons, query_time, key_time)
        # One scale for all pictures: a cell is a cell.
        axes.set(xlim=(-0.5, 7.5), ylim=(num_rows[row] - 0.5, -0.5))
        middle = 1 - num_queries / num_rows[row] / 2
        axes.set_ylabel(f'{name}\n\n{label}' if column == 0 else label, y=middle, horizontalalignment='center')
    _legend(figure, *drawn)
  alt = (
    'Grid of attention masks, rows Perceiver, Perceiver IO, Perceiver AR and unified, columns encoder, processor and '
    'decoder. Without time every key is visible; Perceiver AR is causal over the sequence; the unified model is causal '
    'in blocks of timesteps in all three attentions.'
  )
  return theme.describe(figure, alt)


def rule_and_gradients(moved: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
  """For each model the mask of the rule above, and below how much each output moves with each input.

  Args:
    moved: name -> (allowed bool [o, m], norm of the Jacobian [o, m]); exact zeros are white and crossed.
  """
  from matplotlib.colors import ListedColormap

  with theme.use_theme():
    figure = theme.new_figure(3.3, title='What the rule allows (top), and what really moves each output (bottom)')
    widths = [1] * len(moved)
    grid = figure.subplots(2, len(moved), width_ratios=widths, squeeze=False)
    for (above, below), (name, (allowed, jacobian)) in zip(grid.T, moved.items(), strict=True):
      above.imshow(allowed, cmap=ListedColormap([theme.PALE, theme.BLUE]), vmin=0, vmax=1)
      relative = np.log10(np.where(jacobian > 0, jacobian / jacobian.max(), np.nan))
      drawn = below.imshow(relative, cmap=theme.SEQUENTIAL, vmin=-3, vmax=0)
      rows, columns = np.nonzero(jacobian == 0)
      below.scatter(columns, rows, marker='x', s=14, color=theme.GREY, linewidths=0.8)
      above.set_title(textwrap.fill(name, 14), y=1.0)
      below.set_xlabel('input')
      for axes in (above, below):
        axes.set_anchor('N')
        axes.set_ylim(4.5, -0.5)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(0, allowed.shape[1], 2))
        axes.set_yticks(range(allowed.shape[0]))
    grid[0, 0].set_ylabel('the rule\noutput')
    grid[1, 0].set_ylabel('the gradient\noutput')
    figure.colorbar(drawn, ax=list(grid[1]), label='log10 of |gradient|\nover largest', aspect=12)
  wrong = sum(int(np.sum((jacobian != 0) != allowed)) for allowed, jacobian in moved.values())
  return theme.describe(
    figure,
    f'Masks above and Jacobians below for {", ".join(moved)}: {wrong} pairs differ. Crosses mark gradients of exactly '
    'zero.',
  )
