"""Notebook 07: one network in two orders of writing: its scores, what it writes, a teacher's marks, what it reads."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.baselines.music import MusicScore
from perceiver_lib.data.loading import ArraySource, Transform, evaluation_batches
from perceiver_lib.generation.stream import Sampler, generate
from perceiver_lib.modalities import music
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.plots import interactive
from perceiver_lib.plots.music import VOICE_NAMES
from perceiver_lib.tokens import Tokens
from perceiver_lib.training import metrics
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.sequences import examples_of, latent_targets

Positions = Literal['score', 'index']
Pieces = dict[str, np.ndarray]
"""Whole pieces, as `perceiver_lib.data.chorales` reads them."""

ORDERS: tuple[music.Order, ...] = ('interleaved', 'soprano_first')
MUSIC_ONLY = np.arange(music.VOCABULARY_SIZE)[None] >= music.REST
"""`allowed` of `generation.stream.generate`: pitches and rests, no end."""
CHORDS = ({0, 4, 7}, {0, 3, 7}, {0, 3, 6}, {0, 4, 7, 10}, {0, 3, 7, 10}, {0, 4, 7, 11}, {0, 3, 6, 10}, {0, 3, 6, 9})
"""Pitch classes over the root: the major, minor and diminished triad, and the seventh chords of the chorales."""

_NOTES = ('C', 'C#', 'D', 'D#', 'E', 'F', 'F#', 'G', 'G#', 'A', 'A#', 'B')


# Windows.


def windows_in_orders(num_steps: int, orders: Sequence[music.Order], positions: Positions = 'score') -> Transform:
  """`music.training_windows`, an equal share of every batch in each of the orders."""
  transforms = [music.training_windows(num_steps, order=order) for order in orders]

  def transform(batch: Mapping[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
    shares = np.array_split(np.arange(len(batch['num_steps'])), len(transforms))
    parts = [
      of_order({name: array[rows] for name, array in batch.items()}, random)
      for of_order, rows in zip(transforms, shares, strict=True)
      if len(rows)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return with_plain_indices(joined) if positions == 'index' else joined

  return transform


def with_plain_indices(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The batch with the place of each token in the sequence as its position, and nothing else: (place, 0, 0)."""
  position = np.zeros_like(batch['position'])
  position[..., 0] = np.arange(position.shape[1])
  return {**batch, 'position': position}


# Scores.


def score(
  model: PerceiverAR,
  pieces: Pieces,
  order: music.Order = 'interleaved',
  *,
  num_steps: int | None = None,
  stride: int,
  positions: Positions = 'score',
) -> MusicScore:
  """Every id of whole pieces scored once, by as many latents as the model's config has.

  Args:
    num_steps: of a window; None = those of the longest piece, so that all of a soprano is given.
    stride: time steps that a window scores, at most a fourth of the latents.
  """
  num_steps = num_steps or int(pieces['num_steps'].max()) + 2
  windows = music.evaluation_windows(pieces, num_steps, stride=stride, order=order)
  if positions == 'index':
    windows = with_plain_indices(windows)
  means = metrics.evaluate_dataset(model, _scored, evaluation_batches(ArraySource(windows), 16))
  return MusicScore(means['accuracy'], means['nats_per_token'])


def _scored(model: PerceiverAR, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
  examples = examples_of(batch)
  logits = model(examples.inputs)
  targets, scored = latent_targets(examples, logits)
  nats = cross_entropy(logits.values, targets, valid=scored, reduction='none')
  return {'nats_per_token': (nats, scored), 'accuracy': (metrics.correct(logits.values, targets), scored)}


def nats_by_prefix(
  model: PerceiverAR, pieces: Pieces, prefixes: Sequence[int], *, kept: int, num_steps: int, scored_steps: int
) -> dict[str, dict[int, float]]:
  """Nats per token of the last steps of whole windows, by how many time steps before them are seen.

  Args:
    prefixes: time steps; every one of them scores the same tokens.
    kept: the control 'another piece' keeps so many steps before the scored ones; what is older is another piece's.
    num_steps: of a window, and scored_steps, its last ones, at most a fourth of the latents.

  Returns:
    {'its own' or 'another piece': {steps that are seen: nats}}; the control needs more steps than are kept.

  Raises:
    ValueError: for a prefix that a window does not hold, or pieces without a whole window.
  """
  room = num_steps - scored_steps
  if not all(1 <= steps <= room for steps in prefixes):
    raise ValueError(f'A window of {num_steps} steps has 1 to {room} before those scored; got {list(prefixes)}.')
  windows = music.evaluation_windows(pieces, num_steps, stride=scored_steps)
  place, first = np.arange(windows['ids'].shape[1]), music.NUM_VOICES * room
  whole = (windows['scored'] == (place >= first)).all(axis=1)
  if not whole.any():
    raise ValueError(f'None of these pieces has a whole window of {num_steps} time steps.')
  windows = {name: array[whole] for name, array in windows.items()}
  other = np.roll(windows['ids'], len(windows['ids']) // 2, axis=0)
  found: dict[str, dict[int, float]] = {'its own': {}, 'another piece': {}}
  for steps in prefixes:
    seen = np.broadcast_to(place >= first - music.NUM_VOICES * steps, other.shape)
    is_old = place < first - music.NUM_VOICES * kept
    for name, ids in (('its own', windows['ids']), ('another piece', np.where(is_old, other, windows['ids']))):
      if name == 'its own' or steps > kept:
        batches = evaluation_batches(ArraySource(windows | {'ids': ids, 'valid': seen}), 16)
        found[name][steps] = metrics.evaluate_dataset(model, _scored, batches)['nats_per_token']
  return found


def counterpoint(scores: Int[np.ndarray, 'b t 4'], step_in_bar: Int[np.ndarray, 'b t']) -> dict[str, float]:
  """What a teacher marks, in percent: chords on the beat, crossed voices, parallel fifths and octaves.

  'chords': beats (even steps of a bar) on which all four voices sound and form a triad or a seventh chord, or a part of
  one. 'crossings': steps at which a voice is above the one that should be higher. 'parallels': motions of two voices in
  the same direction from a fifth (octave) to a fifth (octave), of all steps at which two voices move.
  """
  pitch, _ = music.decode(scores)
  sounds = (pitch >= 0).all(-1)
  beats = (pitch[sounds & (step_in_bar % 2 == 0)] % 12).tolist()
  chords = sum(_is_chord(frozenset(beat)) for beat in beats)
  crossings = (np.diff(pitch[sounds], axis=-1) > 0).any(-1).sum()
  change = np.diff(pitch, axis=1)
  moves, parallels = 0, 0
  for high, low in itertools.combinations(range(music.NUM_VOICES), 2):
    interval = (pitch[..., high] - pitch[..., low]) % 12
    moving = sounds[:, 1:] & sounds[:, :-1] & (change[..., high] != 0) & (change[..., low] != 0)
    together = moving & ((change[..., high] > 0) == (change[..., low] > 0))
    parallels += (together & (interval[:, 1:] == interval[:, :-1]) & np.isin(interval[:, 1:], (0, 7))).sum()
    moves += moving.sum()
  shares = {'chords': (chords, len(beats)), 'crossings': (crossings, sounds.sum()), 'parallels': (parallels, moves)}
  return {name: 100 * float(count) / max(int(total), 1) for name, (count, total) in shares.items()}


@functools.cache
def _is_chord(classes: frozenset[int]) -> bool:
  return any(all((c - root) % 12 in chord for c in classes) for chord in CHORDS for root in range(12))


# Writing.


def opening_of(pieces: Pieces, rows: Int[np.ndarray, 'b'], num_steps: int) -> music.Score:
  """What Bach wrote: START and the first time steps."""
  shortest = int(pieces['num_steps'][rows].min())
  if num_steps > shortest:
    raise ValueError(f'The shortest of these pieces has {shortest} time steps; got num_steps={num_steps}.')
  whole = music.score({name: array[rows] for name, array in pieces.items()})
  return {name: array[:, : num_steps + 1] for name, array in whole.items()}


def continue_piece(
  model: PerceiverAR, pieces: Pieces, row: int, *, given_steps: int, num_steps: int, sampler: Sampler, seed: int
) -> Int[np.ndarray, 't 4']:
  """The opening of a piece and what the model writes behind it, `num_steps` time steps in all; bars go on as there."""
  opening = opening_of(pieces, np.array([row]), num_steps)
  return _written(model, opening, 'interleaved', music.NUM_VOICES * (1 + given_steps), sampler, seed)[0, 1:]


def harmonise(
  model: PerceiverAR, pieces: Pieces, rows: Int[np.ndarray, 'b'], *, num_steps: int, sampler: Sampler, seed: int
) -> Int[np.ndarray, 'b t 4']:
  """The sopranos of the first `num_steps` time steps with alto, tenor and bass by the model."""
  opening = opening_of(pieces, rows, num_steps)
  # Given are the soprano from START on, and START in the three other voices.
  return _written(model, opening, 'soprano_first', num_steps + music.NUM_VOICES, sampler, seed)[:, 1:]


def _written(
  model: PerceiverAR, opening: music.Score, order: music.Order, num_given: int, sampler: Sampler, seed: int
) -> Int[np.ndarray, 'b t 4']:
  """The first `num_given` ids of a sequence, and the model's for the rest; positions are those of the opening."""
  batch, num_latents = music.tokens(opening, order), model.config.num_latents
  given, total = batch['ids'][:, :num_given], batch['ids'].shape[1]
  window = LatentWindow(
    context_length=max(total, num_latents), num_latents=num_latents, num_start_latents=num_latents // 2
  )
  settings = {'sampler': sampler, 'seed': seed, 'allowed': MUSIC_ONLY, 'positions': batch['position']}
  new = generate(model, given, window=window, num_tokens=total - num_given, **settings)
  return music.grid_of(np.concatenate([given, new], axis=1), order)


# What the latents read.


def long_windows(pieces: Pieces, num_steps: int, num_latents: int, count: int) -> dict[str, np.ndarray]:
  """The first windows of an evaluation that hold more than twice as many tokens as there are latents."""
  windows = music.evaluation_windows(pieces, num_steps, stride=num_latents // music.NUM_VOICES)
  rows = np.flatnonzero(windows['valid'].sum(axis=1) > 2 * num_latents)[:count]
  return {name: array[rows] for name, array in windows.items()}


def with_shuffled_prefix(inputs: Tokens, num_latents: int, *, seed: int, move_positions: bool) -> Tokens:
  """What stands before the latents, in a random order of storage, with or without its positions."""
  valid = np.asarray(inputs.valid)
  order = np.tile(np.arange(valid.shape[1]), (len(valid), 1))
  for row, exists in zip(order, valid, strict=True):
    prefix = np.flatnonzero(exists)[:-num_latents]
    row[prefix] = np.random.default_rng(seed).permutation(prefix)
  ids, position = np.asarray(inputs.values), np.asarray(inputs.position)
  moved = np.take_along_axis(position, order[..., None], axis=1) if move_positions else position
  return dataclasses.replace(
    inputs, values=jnp.asarray(np.take_along_axis(ids, order, axis=1)), position=jnp.asarray(moved)
  )


def look_back(
  weights: Float[np.ndarray, 'b h n m'], position: Int[np.ndarray, 'b m p'], time: Int[np.ndarray, 'b n'], steps: int
) -> Float[np.ndarray, 'h voice steps']:
  """Mean weight of a latent on each voice so many time steps before its own, for each head."""
  b, h = weights.shape[:2]
  at = position[np.arange(b)[:, None], time]
  back = at[:, :, None, 0] - position[:, None, :, 0]
  total = np.zeros((h, music.NUM_VOICES, steps))
  for voice in range(music.NUM_VOICES):
    for ago in range(steps):
      chosen = (back == ago) & (position[:, None, :, 1] == voice)
      total[:, voice, ago] = np.where(chosen[:, None], weights, 0).sum((0, 2, 3)) / time.size
  return total


def recent_reads(
  weights: Float[np.ndarray, 'h n m'], inputs: Tokens, time: Int[np.ndarray, 'n'], num_steps: int
) -> tuple[interactive.Cells, list[int], Float[np.ndarray, 'h o k']]:
  """The last whole steps of the first row as a grid, voice by voice: its cells, those that ask, and what they read."""
  ids, valid, (step, voice, _) = (np.asarray(a[0]).T for a in (inputs.values, inputs.valid, inputs.position))
  last = step[valid].max()
  near = np.flatnonzero(valid & (step < last) & (step >= last - num_steps))
  grid = near[np.lexsort((step[near], voice[near]))]
  pitch, begins = music.decode(ids[grid])
  labels = [f'{_NOTES[p % 12]}{p // 12 - 1}' if p >= 0 and new else '–' for p, new in zip(pitch, begins, strict=True)]
  latent_of = {token: latent for latent, token in enumerate(time.tolist())}
  places = [place for place, token in enumerate(grid.tolist()) if token in latent_of]
  latents = [latent_of[token] for token in grid[places].tolist()]
  cells = interactive.Cells(name='token', labels=labels, columns=len(grid) // music.NUM_VOICES, rows=VOICE_NAMES)
  return cells, places, weights[:, latents][:, :, grid]
