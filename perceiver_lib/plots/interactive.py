"""Pictures that answer the mouse: point at a query, see what it reads. They need no kernel, no network and no file.

A picture is one piece of HTML with its numbers inside: a cell's output that papermill stores and nbconvert exports as
is. It answers the mouse, a finger and the arrow keys. Where scripts do not run, a sentence points to the figure of
the same maps above it.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from perceiver_lib.plots import theme

LARGEST_BYTES = 300_000
"""Of one picture, so that a page of many still opens at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
  """Places that can be asked or read, in reading order.

  Attributes:
    name: what one place is: 'latent', 'byte'.
    labels: what stands in each place [m]; '' shows an empty square, which is called by its row and column.
    columns: of a grid, row by row; 0 = the labels flow as a text does.
    rows: names of a grid's rows, in place of their numbers.
    shades: of an image behind a grid [m], any range; None = white.
  """

  name: str
  labels: Sequence[str]
  columns: int = 0
  rows: Sequence[str] = ()
  shades: np.ndarray | None = None

  @classmethod
  def numbered(cls, name: str, count: int, columns: int = 8) -> Cells:
    return cls(name=name, labels=[str(number) for number in range(count)], columns=columns)

  @classmethod
  def of_image(cls, image: Float[np.ndarray, 'h w'], name: str = 'pixel') -> Cells:
    """The pixels of a grey image."""
    return cls(name=name, labels=[''] * image.size, columns=image.shape[1], shades=image.ravel())

  def as_json(self) -> dict[str, Any]:
    spread = {'name': self.name, 'labels': list(self.labels), 'columns': self.columns, 'rows': list(self.rows)}
    if self.shades is not None:
      low, width = float(np.min(self.shades)), float(np.ptp(self.shades)) or 1.0
      spread['shades'] = _packed((np.asarray(self.shades, np.float64) - low) / width)
    return spread


class Picture:
  """A piece of HTML that Jupyter shows."""

  def __init__(self, markup: str, words: str):
    self.markup, self.words = markup, words

  def __repr__(self) -> str:
    return self.words

  def _repr_html_(self) -> str:
    return self.markup


def reads(
  maps: Mapping[str, Float[np.ndarray, 'o m'] | Bool[np.ndarray, 'o m']] | Float[np.ndarray, 'a o m'],
  queries: Cells | Sequence[Cells],
  keys: Cells | Sequence[Cells] | None = None,
  *,
  title: str,
  axis: str = 'head',
  places: Sequence[int] | None = None,
) -> Picture:
  """What every query reads of every key; a slider goes over several maps.

  Args:
    maps: name -> map, or an array of them, whose names are numbers. Shares, shown in percent, or bools: what may be
      read. 8 bits are kept of each share, as a fraction of the largest in its row.
    queries: what asks; one for all maps, or one a map.
    keys: what is read, likewise; None = queries and keys stand in the same cells, as the bytes of a text do.
    title: what is to be seen, in a sentence.
    axis: what the slider goes over.
    places: without keys, the cell that each query is [o]; None = the first.

  Raises:
    ValueError: if a map does not fit its cells, is not finite or negative, or the picture is larger than
      `LARGEST_BYTES`.
  """
  if not isinstance(maps, Mapping):
    maps = {f'{axis} {number}': weights for number, weights in enumerate(np.asarray(maps))}
  views = []
  for number, (name, values) in enumerate(maps.items()):
    asked = queries if isinstance(queries, Cells) else queries[number]
    read = keys if isinstance(keys, Cells) or keys is None else keys[number]
    at = range(len(values)) if places is None else places
    weights = np.asarray(values, np.float64)
    fits = len(at) == len(weights) and weights.shape[1:] == (len((read or asked).labels),)
    if not fits or max(at) >= len(asked.labels) or not np.isfinite(weights).all() or weights.min() < 0:
      raise ValueError(f'Map {name!r} needs finite shares [queries, keys] that fit its cells; got {weights.shape}.')
    tops = weights.max(axis=1)
    views.append(
      {
        'name': name,
        'places': [int(place) for place in at],
        'tops': [float(f'{top:.6g}') for top in tops],
        'weights': _packed(weights / np.where(tops > 0, tops, 1)[:, None]),
        'bools': np.asarray(values).dtype == bool,
        'queries': asked.as_json() if number == 0 or not isinstance(queries, Cells) else None,
        'keys': None if read is None or (number and isinstance(keys, Cells)) else read.as_json(),
      }
    )
  data = json.dumps({'title': title, 'axis': axis, 'same': keys is None, 'views': views}, ensure_ascii=False)
  data = data.replace('</', r'<\/')
  markup = (
    f'<style>{_STYLE}</style>\n<div class="perceiver-reads">{html.escape(title)} (This picture answers the mouse where '
    f'scripts run; the figure above shows the same.)<script type="application/json">{data}</script></div>\n'
    f'<script>{_SCRIPT}</script>'
  )
  if (size := len(markup.encode())) > LARGEST_BYTES:
    raise ValueError(f'The picture has {size:,} bytes, more than {LARGEST_BYTES:,}; show fewer maps, queries or keys.')
  return Picture(markup, title)


def _packed(shares: np.ndarray) -> str:
  return base64.b64encode(np.round(255 * shares).astype(np.uint8).tobytes()).decode()


_STYLE = """
.perceiver-reads { background: #fff; color: #000; font: 14px/1.4 system-ui, sans-serif; padding: .5rem; }
.perceiver-reads p, .perceiver-reads output { margin: 0 0 .4rem; display: block; }
.perceiver-reads label { display: flex; flex-wrap: wrap; gap: .2rem .6rem; align-items: center; margin-bottom: .4rem; }
.perceiver-reads .sides { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: flex-start; }
.perceiver-reads .cells { padding: 2px; }
.perceiver-reads .line { display: flex; flex-wrap: wrap; }
.perceiver-reads .grid { display: grid; flex: none; }
.perceiver-reads .cells span { box-sizing: border-box; min-width: .85em; text-align: center; font: 13px/1.6 monospace;
  white-space: pre; overflow: hidden; }
.perceiver-reads .grid span { aspect-ratio: 1; font: 9px/2.1 system-ui, sans-serif; outline: 1px solid #fff;
  min-width: 0; }
.perceiver-reads .image span { outline: none; }
.perceiver-reads .asks { cursor: pointer; touch-action: manipulation; }
.perceiver-reads .asks span.query { box-shadow: inset 0 -2px #6E6E6E; }
.perceiver-reads .asks span.chosen { outline: 3px solid ORANGE; outline-offset: -1px; z-index: 1; position: relative; }
""".strip().replace('ORANGE', theme.VERMILLION)

_SCRIPT = (
  """
for (const root of document.querySelectorAll('.perceiver-reads:not([data-ready])')) {
  root.dataset.ready = '';
  const picture = JSON.parse(root.querySelector('script').textContent), first = picture.views[0];
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const make = (tag, parent, attributes = {}, text = '') => {
    const node = parent.appendChild(document.createElement(tag));
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  };
  const mix = (grey, [r, g, b], share) =>
    `rgb(${[r, g, b].map(part => Math.round(grey + (part - grey) * share)).join(' ')})`;
  root.textContent = '';
  const help = 'Point at a query, tap it, or use the arrow keys; a click holds it, the next one lets go.';
  make('p', root, {}, `${picture.title} ${help}`);
  let view, query, held = false, asks, keys;
  const slider = picture.views.length > 1 && make('label', root, {}, picture.axis);
  if (slider) {
    const range = make('input', slider, {type: 'range', min: 0, max: picture.views.length - 1, value: 0});
    slider.name = make('b', slider);
    range.addEventListener('input', () => show(Number(range.value)));
  }
  const said = make('output', root, {'aria-live': 'polite'}), sides = make('div', root, {class: 'sides'});

  function side(cells, asking) {
    const kind = (cells.columns ? 'grid' : 'line') + (cells.shades ? ' image' : '') + (asking ? ' asks' : '');
    const role = picture.same ? '' : asking ? ' that ask' : ' that are read', what = `${cells.name}s${role}`;
    const whole = make('div', sides);
    make('small', whole, {}, what);
    const box = make('div', whole, {class: 'cells ' + kind, role: asking ? 'listbox' : 'group', 'aria-label': what});
    if (asking) box.tabIndex = 0;
    const size = Math.min(24, 336 / cells.columns);
    if (cells.columns) box.style.gridTemplateColumns = `repeat(${cells.columns}, ${size}px)`;
    const grey = cells.shades && bytes(cells.shades);
    const row = i => cells.rows[Math.floor(i / cells.columns)] ?? `row ${Math.floor(i / cells.columns)}`;
    const place = i => cells.columns ? `${row(i)}, column ${i % cells.columns}` : i;
    const nodes = cells.labels.map((label, i) => {
      const node = make('span', box, {}, size < 12 ? '' : label.replace('\\n', '\\u21b5'));
      node.called = !label ? place(i) : cells.labels.indexOf(label) === cells.labels.lastIndexOf(label)
        ? label : `${label.replace('\\n', '\\u21b5').replace(' ', '\\u2423')} at ${place(i)}`;
      node.grey = grey ? grey[i] : 255;
      node.style.background = mix(node.grey, [0, 0, 0], 0);
      return node;
    });
    return {box, nodes, name: cells.name, columns: cells.columns, image: Boolean(grey)};
  }

  function show(number) {
    view = picture.views[number];
    if (slider) slider.name.textContent = view.name;
    sides.textContent = '';
    asks = side(view.queries || first.queries, true);
    keys = picture.same ? asks : side(view.keys || first.keys, false);
    view.shares = bytes(view.weights);
    view.at = new Map(view.places.map((place, index) => [place, index]));
    asks.nodes.forEach((node, place) => {
      if (!view.at.has(place)) return;
      node.classList.add('query');
      node.setAttribute('role', 'option');
      const chosen = () => choose(view.at.get(place));
      node.addEventListener('pointerenter', () => { if (!held) chosen(); });
      node.addEventListener('click', () => { held = !held; chosen(); });
    });
    asks.box.addEventListener('keydown', event => {
      const row = asks.columns || 8, step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row}[event.key];
      const next = view.at.get(view.places[query] + step);
      if (step) event.preventDefault();
      if (next !== undefined) choose(next);
    });
    choose(Math.min(query ?? Infinity, view.places.length - 1));
  }

  function choose(index) {
    query = index;
    for (const [place, other] of view.at) {
      asks.nodes[place].classList.toggle('chosen', other === query);
      asks.nodes[place].setAttribute('aria-selected', other === query);
    }
    const width = keys.nodes.length, top = view.tops[query];
    const shares = Array.from(view.shares.subarray(query * width, (query + 1) * width), share => share / 255);
    const written = share => view.bools ? '' : ` ${Number((100 * share * top).toPrecision(3))} %`;
    keys.nodes.forEach((node, i) => {
      node.dataset.value = shares[i] * top;
      node.title = node.called + written(shares[i]);
      node.style.background = mix(node.grey, keys.image ? VERMILLION : BLUE, shares[i] * (keys.image ? 0.85 : 1));
      node.style.color = !keys.image && shares[i] > 0.5 ? '#fff' : '#000';
    });
    const order = shares.map((share, i) => i).filter(i => shares[i] > 0).sort((a, b) => shares[b] - shares[a]);
    const most = order.slice(0, view.bools ? 12 : 3).map(i => keys.nodes[i].called + written(shares[i])).join('; ');
    said.textContent = `${asks.name} ${asks.nodes[view.places[query]].called} reads ${most || 'nothing'}` +
      (order.length > 12 && view.bools ? ` and ${order.length - 12} more.` : '.');
  }
  show(0);
}
""".strip()
  .replace('VERMILLION', '[213, 94, 0]')
  .replace('BLUE', '[0, 114, 178]')
)
