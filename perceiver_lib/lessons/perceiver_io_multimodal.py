"""Notebook 04: clips as tokens of three modalities, queries for any of them, and how near the answers come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from perceiver_lib.data.av_digits import CANVAS, NUM_FRAMES, NUM_RUNS
from perceiver_lib.data.loading import Batch
from perceiver_lib.experiments.tables import Table
from perceiver_lib.modalities.audio import audio_positions
from perceiver_lib.modalities.video import video_from_patches, video_patches, video_positions, video_tokens
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.queries import position_queries
from perceiver_lib.scores.signals import decibels
from perceiver_lib.tokens import Tokens

BLOCK = (2, 4, 4)
"""Frames, rows and columns of a token of the video."""
SHAPE = (NUM_FRAMES, CANVAS, CANVAS)
BLOCK_POSITIONS, RUN_POSITIONS = video_positions(SHAPE, BLOCK), audio_positions(NUM_RUNS)
NUM_BLOCKS, BLOCK_VALUES = len(BLOCK_POSITIONS), int(np.prod(BLOCK))
MASKED = 10
"""Stands for a label that is not told."""

Answers = dict[str, Float32[np.ndarray, 'n ...']]
"""'video' `[n, 8, 16, 16]`, 'sound' `[n, 32, 32]` and 'label' `[n, 10]`, the scores of the classes."""


def clip_tokens(
  clips: Mapping[str, Array],
  label: Int[Array, 'b'],
  *,
  seen: Bool[Array, 'b'],
  heard: Bool[Array, 'b'],
) -> dict[str, Tokens]:
  """Clips by modality; a modality that is not seen or heard is there as padding.

  Args:
    label: what is told, `MASKED` for nothing.
  """
  b = len(label)
  video = video_tokens(clips['video'][..., None], BLOCK)
  runs = Tokens(
    values=clips['noisy'],
    position=jnp.asarray(RUN_POSITIONS)[None],
    valid=jnp.broadcast_to(heard[:, None], (b, NUM_RUNS)),
  )
  blocks = Tokens(values=video.values, position=video.position, valid=jnp.broadcast_to(seen[:, None], (b, NUM_BLOCKS)))
  return {'label': Tokens(values=label[:, None]), 'sound': runs, 'video': blocks}


def clip_queries(batch_size: int, blocks: Int[Array, 'o'], runs: Int[Array, 'r']) -> dict[str, Tokens]:
  """Asks for the label, for some blocks of the video and for some runs of the sound."""
  return {
    'label': Tokens(values=jnp.zeros((batch_size, 1), jnp.int32)),
    'sound': position_queries(jnp.asarray(RUN_POSITIONS)[runs], batch_size=batch_size),
    'video': position_queries(jnp.asarray(BLOCK_POSITIONS)[blocks], batch_size=batch_size),
  }


def block_targets(clips: Mapping[str, Array], blocks: Int[Array, 'o']) -> Float[Array, 'b o k']:
  """What the queries for these blocks are to answer."""
  return video_patches(clips['video'][..., None], BLOCK)[:, blocks]


def answers(
  model: PerceiverIO,
  clips: Batch,
  *,
  seen: bool = True,
  heard: bool = True,
  told: bool = False,
  foreign: bool = False,
  batch_size: int = 250,
) -> Answers:
  """Everything is asked, of clips of which some modalities are there.

  Args:
    told: the label is not masked.
    foreign: everybody asks the latents of the next clip.
    batch_size: clips at a time; it divides them.
  """
  graphdef, state = nnx.split(model)
  parts = []
  for start in range(0, len(clips['label']), batch_size):
    batch = {name: array[start : start + batch_size] for name, array in clips.items()}
    label = batch['label'] if told else np.full(batch_size, MASKED, np.int32)
    present = (np.full(batch_size, there) for there in (seen, heard))
    whose = np.roll(np.arange(batch_size), -int(foreign))
    parts.append(jax.device_get(_ask_all(graphdef)(state, batch, label, *present, whose)))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.lru_cache(maxsize=64)
def _ask_all(graphdef: Any) -> Callable[..., dict[str, Array]]:
  @jax.jit
  def ask_all(state, clips, label, seen, heard, whose):
    model = nnx.merge(graphdef, state)
    latents = model.encode(clip_tokens(clips, label, seen=seen, heard=heard))
    queries = clip_queries(len(label), jnp.arange(NUM_BLOCKS), jnp.arange(NUM_RUNS))
    found = model.decode(Tokens(values=latents.values[whose]), queries)
    video = video_from_patches(found['video'], (*SHAPE, 1), BLOCK)[..., 0]
    return {'video': video, 'sound': found['sound'], 'label': found['label'][:, 0]}

  return ask_all


def video_score(video: Float[np.ndarray, 'n t y x'], clips: Batch) -> float:
  """Decibels of the peak signal-to-noise ratio."""
  return decibels(1.0, float(np.square(video - clips['video']).mean()))


def sound_score(sound: Float[np.ndarray, 'n r k'], clips: Batch, mean: Float[np.ndarray, 'r k']) -> float:
  """Decibels of the signal-to-noise ratio of the word's spectrum, where the signal is what differs from the mean."""
  return decibels(float(np.square(clips['sound'] - mean).mean()), float(np.square(clips['sound'] - sound).mean()))


def scores(found: Answers, clips: Batch, mean: Float[np.ndarray, 'r k']) -> dict[str, float]:
  """'video' and 'sound' in decibels, 'label' in percent."""
  right = found['label'].argmax(-1) == clips['label']
  return {
    'video': video_score(found['video'], clips),
    'sound': sound_score(found['sound'], clips, mean),
    'label': 100 * float(right.mean()),
  }


def comparison(rows: Mapping[str, Mapping[str, float]]) -> Table:
  """One row a model or rule; a dash where it has no number."""
  headings = {'video': 'video (dB PSNR)', 'sound': 'sound (dB above the mean of all)', 'label': 'label right (%)'}
  forms = {'video': '.2f', 'sound': '.2f', 'label': '.1f'}
  cells = [[format(row[name], forms[name]) if name in row else '–' for name in headings] for row in rows.values()]
  return Table(['', *headings.values()], [[name, *row] for name, row in zip(rows, cells, strict=True)])


def numbers_matched(score: float, codes: Mapping[int, float]) -> int:
  """The most numbers of a linear code whose score this one reaches; 0 = of none."""
  return max((count for count, other in codes.items() if other <= score), default=0)


def one_of_each(labels: Int[np.ndarray, 'n'], digits: Sequence[int]) -> list[int]:
  """The first clip of each of these digits."""
  return [int(np.argmax(labels == digit)) for digit in digits]
