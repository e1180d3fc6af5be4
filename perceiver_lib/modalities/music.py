"""Four voices as tokens: one id for each voice at each time step, in the order in which a model shall write them.

A score is a grid `[b, t, 4]` of ids, one column a voice (soprano, alto, tenor, bass). An id says what sounds and
whether it begins there, so that every step tells its whole chord and a note's length is the number of its ids. Before
a piece stands a step of START, behind it one of END.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Bool, Int, Int16, Int32

PAD, START, END, REST = range(4)
NUM_SPECIAL = 4
LOWEST, HIGHEST = 31, 86
"""MIDI pitches of the chorales, 36 to 81, and 5 semitones more on either side."""
NUM_PITCHES = HIGHEST - LOWEST + 1
VOCABULARY_SIZE = NUM_SPECIAL + 2 * NUM_PITCHES
NUM_VOICES = 4
MAX_TRANSPOSITION = 5

Score = dict[str, np.ndarray]
Notes = list[Int[np.ndarray, '_ 3']]
"""For each voice, a row a note: onset and length in time steps, MIDI pitch."""
Order = Literal['interleaved', 'soprano_first']


def encode(pitch: Int[np.ndarray, '*shape'], onset: Bool[np.ndarray, '*shape']) -> Int32[np.ndarray, '*shape']:
  """Ids: REST for pitch -1, then one for each pitch that begins, then one for each that is held.

  Raises:
    ValueError: for pitches that are neither -1 nor in LOWEST..HIGHEST.
  """
  sounds = pitch >= 0
  if (sounds & ((pitch < LOWEST) | (pitch > HIGHEST))).any() or pitch.min() < -1:
    raise ValueError(f'Pitches must be {LOWEST} to {HIGHEST}, or -1; got {pitch.min()} to {pitch.max()}.')
  ids = NUM_SPECIAL + pitch.astype(np.int32) - LOWEST + np.where(onset, 0, NUM_PITCHES)
  return np.where(sounds, ids, REST).astype(np.int32)


def decode(ids: Int[np.ndarray, '*shape']) -> tuple[Int16[np.ndarray, '*shape'], Bool[np.ndarray, '*shape']]:
  """The pitch of each id, -1 where nothing sounds, and whether it begins there.

  Raises:
    ValueError: for ids outside the vocabulary.
  """
  ids = np.asarray(ids)
  if ids.size and not 0 <= ids.min() <= ids.max() < VOCABULARY_SIZE:
    raise ValueError(f'Ids must be in [0, {VOCABULARY_SIZE}); got {ids.min()} to {ids.max()}.')
  sounds = ids >= NUM_SPECIAL
  pitch = np.where(sounds, LOWEST + (ids - NUM_SPECIAL) % NUM_PITCHES, -1).astype(np.int16)
  return pitch, sounds & (ids < NUM_SPECIAL + NUM_PITCHES)


def held(ids: Int[np.ndarray, '*shape']) -> Int32[np.ndarray, '*shape']:
  """The ids of a step at which everything goes on: a pitch is held, a rest stays a rest."""
  begins = (ids >= NUM_SPECIAL) & (ids < NUM_SPECIAL + NUM_PITCHES)
  return np.where(begins, ids + NUM_PITCHES, ids).astype(np.int32)


def transpose(ids: Int[np.ndarray, '*shape'], semitones: Int[np.ndarray, '...'] | int) -> Int32[np.ndarray, '*shape']:
  """All pitches moved by `semitones`, which broadcasts against the ids; special ids and rests stay."""
  pitch, onset = decode(ids)
  moved = encode(np.where(pitch < 0, -1, pitch + semitones), onset)
  return np.where(ids < NUM_SPECIAL, ids, moved).astype(np.int32)


def score(batch: Mapping[str, np.ndarray]) -> Score:
  """Grids of whole pieces, as `perceiver_lib.data.chorales` reads them, with a step of START and one of END.

  Returns:
    'ids' `[b, t + 2, 4]`, PAD behind END; 'step' and 'step_in_bar' `[b, t + 2]` (0 at START and END); 'scored'
    `[b, t + 2, 4]`: all that a model has to foresee: every id of the music, and one END.
  """
  ids = encode(batch['pitch'], batch['onset'])
  ids = np.pad(ids, ((0, 0), (1, 1), (0, 0)), constant_values=START)
  in_bar = np.pad(batch['step_in_bar'].astype(np.int32), ((0, 0), (1, 1)))
  step = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), in_bar.shape)
  end = batch['num_steps'][:, None] + 1
  ids = np.where((step < end)[..., None], ids, np.where((step == end)[..., None], END, PAD)).astype(np.int32)
  scored = (ids >= REST) | ((ids == END) & (np.arange(NUM_VOICES) == 0))
  return {'ids': ids, 'step': step, 'step_in_bar': np.where(step < end, in_bar, 0).astype(np.int32), 'scored': scored}


def _windows(whole: Score, rows: np.ndarray, starts: np.ndarray, num_steps: int) -> Score:
  """Steps `starts` to `starts + num_steps` of each row, padded where the score ends before."""
  step = starts[:, None] + np.arange(num_steps)
  exists = step < whole['ids'].shape[1]
  step = np.minimum(step, whole['ids'].shape[1] - 1)
  window = {name: array[rows[:, None], step] for name, array in whole.items()}
  for name in ('ids', 'scored'):
    window[name] = np.where(exists[..., None], window[name], np.zeros((), window[name].dtype))
  return window


def training_windows(
  num_steps: int, *, order: Order = 'interleaved', max_transposition: int = MAX_TRANSPOSITION
) -> Callable[[Mapping[str, np.ndarray], np.random.Generator], Score]:
  """A transform for `training_batches` of chorales: random windows, each in a random key.

  Windows begin anywhere from START on, such that they reach no further than END. Transposition keeps every voice's
  intervals and is drawn from -max_transposition..max_transposition.

  Returns:
    A function (batch, random) -> the batch of `tokens`, `[b, 4 num_steps]`.
  """

  def transform(batch: Mapping[str, np.ndarray], random: np.random.Generator) -> Score:
    whole = score(batch)
    b = len(whole['ids'])
    starts = random.integers(0, np.maximum(batch['num_steps'] + 2 - num_steps, 0) + 1)
    semitones = random.integers(-max_transposition, max_transposition, b, endpoint=True)
    window = _windows(whole, np.arange(b), starts, num_steps)
    return tokens(window | {'ids': transpose(window['ids'], semitones[:, None, None])}, order)

  return transform


def evaluation_windows(
  batch: Mapping[str, np.ndarray], num_steps: int, *, stride: int, order: Order = 'interleaved'
) -> Score:
  """Windows over whole pieces in which every token is scored once: the last `stride` steps of each.

  A small stride gives each scored token much context and costs many windows; report it beside the loss. What follows
  a window's last scored token is not valid, so that the last latents of a Perceiver AR sit on the scored ones.

  Returns:
    The batch of `tokens`, `[windows, 4 num_steps]`, with 'piece', the row of each window.

  Raises:
    ValueError: if the stride is not 1 to num_steps - 1: the first token of a window has nothing to be foreseen from.
  """
  if not 1 <= stride < num_steps:
    raise ValueError(f'The stride must be 1 to num_steps - 1 = {num_steps - 1}; got {stride}.')
  whole = score(batch)
  lengths = batch['num_steps'] + 2
  counts = -(-lengths // stride)
  rows = np.repeat(np.arange(len(lengths)), counts)
  first = stride * (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts))
  starts = np.maximum(np.minimum(first + stride, lengths[rows]) - num_steps, 0)
  window = _windows(whole, rows, starts, num_steps)
  step = window['step']
  asked = (step >= first[:, None]) & (step < first[:, None] + stride)
  batch = tokens(window | {'scored': window['scored'] & asked[..., None]}, order)
  is_reached = np.cumsum(batch['scored'][:, ::-1], axis=1)[:, ::-1] > 0
  return batch | {'valid': batch['valid'] & is_reached, 'piece': rows}


def tokens(grid: Score, order: Order = 'interleaved') -> Score:
  """Grids `[b, t, 4]` as sequences `[b, 4 t]` for autoregressive models.

  interleaved: soprano, alto, tenor, bass of a step, then those of the next. soprano_first: the whole soprano, which is
  given and not scored, then alto, tenor and bass of each step: the task of harmonising a tune.

  Returns:
    'ids'; 'valid', False = padding; 'position' int32 `[b, 4 t, 3]`: (step, voice, step in bar); 'scored', which ids
    count as targets (`label_mask` of `perceiver_lib.training.sequences.next_tokens`).

  Raises:
    ValueError: for another order.
  """
  if order not in ('interleaved', 'soprano_first'):
    raise ValueError(f"order must be 'interleaved' or 'soprano_first'; got {order!r}.")
  step, in_bar = (repeat(grid[name], 'b t -> b t v', v=NUM_VOICES) for name in ('step', 'step_in_bar'))
  voice = np.broadcast_to(np.arange(NUM_VOICES, dtype=np.int32), step.shape)
  scored = grid['scored'] & ((voice > 0) | (order == 'interleaved'))
  flat = functools.partial(_in_order, order=order)
  return {
    'ids': flat(grid['ids']),
    'valid': flat(grid['ids']) != PAD,
    'position': np.stack([flat(step), flat(voice), flat(in_bar)], axis=-1),
    'scored': flat(scored),
  }


def _in_order(grid: np.ndarray, order: Order) -> np.ndarray:
  if order == 'interleaved':
    return rearrange(grid, 'b t v -> b (t v)')
  return np.concatenate([grid[..., 0], rearrange(grid[..., 1:], 'b t v -> b (t v)')], axis=1)


def grid_of(ids: Int[np.ndarray, 'b m'], order: Order = 'interleaved') -> Int32[np.ndarray, 'b t 4']:
  """The inverse of `tokens` for ids; an incomplete last step is left out (interleaved only).

  Raises:
    ValueError: if a soprano-first sequence is not whole: 4 ids a step.
  """
  ids = np.asarray(ids, np.int32)
  num_steps = ids.shape[1] // NUM_VOICES
  if order == 'interleaved':
    return rearrange(ids[:, : num_steps * NUM_VOICES], 'b (t v) -> b t v', v=NUM_VOICES)
  if ids.shape[1] % NUM_VOICES:
    raise ValueError(f'A whole soprano and its harmony have 4 ids a step; got {ids.shape[1]} ids.')
  lower = rearrange(ids[:, num_steps:], 'b (t v) -> b t v', v=NUM_VOICES - 1)
  return np.concatenate([ids[:, :num_steps, None], lower], axis=2)


def to_notes(ids: Int[np.ndarray, 't 4']) -> Notes:
  """The notes of one grid, up to the first step with an END; START and PAD are silent.

  A pitch that is held without having begun begins there, so that whatever a model writes can be played.
  """
  ended = (np.asarray(ids) == END).any(axis=1)
  pitch, onset = decode(ids[: int(ended.argmax()) if ended.any() else len(ids)])
  before = np.concatenate([np.full((1, pitch.shape[1]), -1, np.int16), pitch[:-1]]) if len(pitch) else pitch
  begins = (pitch >= 0) & (onset | (pitch != before))
  changes = begins | (pitch != before)
  voices = []
  for voice in range(pitch.shape[1]):
    [borders] = np.nonzero(changes[:, voice])
    lengths = np.diff(np.append(borders, len(pitch)))
    sounding = pitch[borders, voice] >= 0
    notes = np.stack([borders, lengths, pitch[borders, voice]], axis=1)[sounding]
    voices.append(notes.astype(np.int32))
  return voices
