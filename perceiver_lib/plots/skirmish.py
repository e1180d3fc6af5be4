"""Battles as pictures: stills, a small animation that a page carries along, and whom a unit reads, on the field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from perceiver_lib.data.skirmish import ATTACK, HEALTH, RADIUS, RANGE, SIDE, Units
from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

COLOURS = (theme.BLUE, theme.VERMILLION)
"""Of team 0, which a model commands, and of team 1."""
MELEE = 3.0
"""Kinds with less range are drawn as squares, the others as circles."""


def stills(film: Mapping[str, np.ndarray], *, title: str, count: int = 4) -> Figure:
  """Some moments of a battle from its first to its last: units by team and health, shots as lines.

  Args:
    film: arrays of `Units` and 'orders', `[t, u, ...]`.
  """
  moments = np.linspace(0, len(film['health']) - 1, count).round().astype(int)
  with theme.use_theme():
    figure = theme.new_figure(theme.NOTEBOOK_WIDTH / count + 0.8, title=title)
    left = []
    for axes, moment in zip(figure.subplots(1, count), moments, strict=True):
      now = {name: array[moment] for name, array in film.items()}
      alive, team = now['health'] > 0, now['team']
      _field(axes)
      for shooter, target in _shots(now):
        axes.plot(*now['position'][[shooter, target]].T, color=COLOURS[team[shooter]], linewidth=0.7, alpha=0.6)
      axes.scatter(*now['position'][~alive].T, marker='x', s=9, color=theme.GREY, alpha=0.5, linewidth=0.8)
      for side, colour in enumerate(COLOURS):
        strength = 0.25 + 0.75 * now['health'] / HEALTH[now['kind']]
        _dots(axes, now, alive & (team == side), facecolor=[(colour, s) for s in strength.tolist()], edgecolor=colour)
      counts = [int((alive & (team == side)).sum()) for side in (0, 1)]
      left.append(f'{counts[0]} against {counts[1]} after {moment} orders')
      axes.set_title(f'order {moment}: {counts[0]} v {counts[1]}', fontsize=9)
    names = {'commanded': COLOURS[0], 'built-in bot': COLOURS[1]}
    for number, (name, colour) in enumerate(names.items()):
      figure.text(0.01 + 0.14 * number, 0.01, f'● {name}', color=colour, fontsize=9)
    figure.text(0.32, 0.01, '■ short range   pale = hurt   × = dead   line = shot', color=theme.GREY, fontsize=9)
    figure.get_layout_engine().set(rect=(0, 0.06, 1, 0.94))
  return theme.describe(figure, f'{title}. Units of two teams on the field: {"; ".join(left)}.')


def reads(
  units: Units, weights: Float[np.ndarray, 'u u'], chosen: Sequence[int], foe: Int[np.ndarray, 'u'], *, title: str
) -> Figure:
  """One panel a chosen unit: every living unit shaded by how much of it is in the answer to that one's query.

  Args:
    units: of one battle.
    weights: `[query, unit]`; rows sum to 1.
    chosen: the units that ask.
    foe: of every unit, the foe that is marked, such as the nearest.
  """
  now = {name: np.asarray(getattr(units, name)) for name in ('position', 'health', 'kind', 'team')}
  alive = now['health'] > 0
  largest = float(np.max(weights[list(chosen)]))
  with theme.use_theme():
    from matplotlib import colormaps

    colours = colormaps[theme.SEQUENTIAL]
    figure = theme.new_figure(theme.NOTEBOOK_WIDTH / len(chosen) + 0.6, title=title)
    panels, said = figure.subplots(1, len(chosen), squeeze=False)[0], []
    for axes, unit in zip(panels, chosen, strict=True):
      _field(axes)
      for side, edge in enumerate(COLOURS):
        shades = colours(weights[unit] / largest)
        _dots(axes, now, alive & (now['team'] == side), facecolor=list(shades), edgecolor=edge, grown=1.6)
      axes.plot(*now['position'][unit], '*', color='black', markersize=11, markeredgecolor='white')
      axes.plot(*now['position'][foe[unit]], 'o', markersize=15, markerfacecolor='none', markeredgecolor='black')
      rank = int((weights[unit][alive] > weights[unit][foe[unit]]).sum()) + 1
      said.append(f'unit {unit} reads its marked foe at rank {rank} of {int(alive.sum())}')
      axes.set_title(f'unit {unit}: marked foe {weights[unit][foe[unit]]:.3f}', fontsize=9)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure.colorbar(
      ScalarMappable(Normalize(0, largest), colours),
      ax=list(panels),
      label='share of the answer',
      aspect=25,
      shrink=0.8,
    )
  return theme.describe(figure, f'{title}. Stars ask, circles mark a foe: {"; ".join(said)}.')


def animation(film: Mapping[str, np.ndarray], *, title: str) -> str:
  """The battle as a small piece of HTML that plays by itself: a canvas, a button and a slider, nothing from outside.

  Args:
    film: as for `stills`.
  """
  frames = []
  for moment in range(len(film['health'])):
    now = {name: array[moment] for name, array in film.items()}
    target = np.full(len(now['health']), -1)
    for shooter, shot_at in _shots(now):
      target[shooter] = shot_at
    health = np.ceil(9 * now['health'] / HEALTH[now['kind']]).astype(int)
    columns = [np.rint(10 * now['position']).astype(int).T, health[None], target[None]]
    frames.append(np.concatenate(columns).T.ravel().tolist())
  radius = np.rint(10 * RADIUS[film['kind'][0]]).astype(int).tolist()
  square = (RANGE[film['kind'][0]] < MELEE).astype(int).tolist()
  data = json.dumps(
    {'frames': frames, 'radius': radius, 'square': square, 'team': film['team'][0].tolist(), 'colours': COLOURS},
    separators=(',', ':'),
  )
  name = 'skirmish' + hashlib.sha256(data.encode()).hexdigest()[:12]
  return _PAGE.replace('NAME', name).replace('DATA', data).replace('TITLE', title).replace('SIDE', str(int(10 * SIDE)))


_PAGE = """\
<figure id="NAME" style="margin:0;max-width:400px;font:13px sans-serif">
<figcaption>TITLE</figcaption>
<canvas width="800" height="800" style="width:100%;border:1px solid #aaa;background:#fff" role="img" aria-label="TITLE">
</canvas>
<div style="display:flex;gap:8px"><button type="button">pause</button>
<input type="range" min="0" value="0" style="flex:1" aria-label="order"></div>
</figure>
<script>
(() => {
  const film = DATA, root = document.getElementById('NAME'), canvas = root.querySelector('canvas');
  const button = root.querySelector('button'), slider = root.querySelector('input'), c = canvas.getContext('2d');
  const last = film.frames.length - 1, scale = canvas.width / SIDE;
  slider.max = last;
  const draw = () => {
    const f = film.frames[slider.value], x = i => f[4 * i] * scale, y = i => canvas.height - f[4 * i + 1] * scale;
    c.clearRect(0, 0, canvas.width, canvas.height);
    film.team.forEach((team, i) => {
      if (f[4 * i + 3] < 0) return;
      c.globalAlpha = 0.6; c.strokeStyle = film.colours[team]; c.lineWidth = 2;
      c.beginPath(); c.moveTo(x(i), y(i)); c.lineTo(x(f[4 * i + 3]), y(f[4 * i + 3])); c.stroke();
    });
    film.team.forEach((team, i) => {
      const health = f[4 * i + 2], r = film.radius[i] * scale;
      c.globalAlpha = health ? 0.25 + health / 12 : 0.15; c.fillStyle = health ? film.colours[team] : '#000';
      c.beginPath();
      if (film.square[i]) c.rect(x(i) - r, y(i) - r, 2 * r, 2 * r); else c.arc(x(i), y(i), r, 0, 7);
      c.fill();
    });
  };
  let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
  const show = () => { button.textContent = playing ? 'pause' : 'play'; draw(); };
  setInterval(() => { if (playing) { slider.value = +slider.value < last ? +slider.value + 1 : 0; draw(); } }, 150);
  button.onclick = () => { playing = !playing; show(); };
  slider.oninput = () => { playing = false; show(); };
  show();
})();
</script>
"""


def _shots(now: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
  """Who shoots at whom: attacks of the living on a foe in range."""
  alive, orders, position = now['health'] > 0, now['orders'], now['position']
  target = np.maximum(orders - ATTACK, 0)
  near = np.linalg.norm(position - position[target], axis=-1) < RANGE[now['kind']]
  against = (now['team'] != now['team'][target]) & alive & alive[target]
  return [(int(i), int(target[i])) for i in np.flatnonzero((orders >= ATTACK) & near & against)]


def _field(axes: Axes) -> None:
  axes.set(xlim=(0, SIDE), ylim=(0, SIDE), aspect='equal', xticks=[], yticks=[])
  axes.spines[:].set(visible=True, color=theme.GREY)


def _dots(
  axes: Axes, now: Mapping[str, np.ndarray], which: np.ndarray, *, facecolor: list, edgecolor: str, grown: float = 1.0
) -> None:
  """Units as dots, as large as they are but for `grown`; short range as squares."""
  short = RANGE[now['kind']] < MELEE
  for marker, shape in (('s', short), ('o', ~short)):
    rows = np.flatnonzero(which & shape)
    size = grown * 90 * RADIUS[now['kind'][rows]] ** 2
    faces = [facecolor[row] for row in rows]
    axes.scatter(*now['position'][rows].T, s=size, c=faces or None, marker=marker, edgecolors=edgecolor, linewidth=0.8)
