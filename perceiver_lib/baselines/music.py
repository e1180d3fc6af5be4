"""What a model of chorales must beat: counts of the training pieces, and going on as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from perceiver_lib.modalities import music

_UNIGRAM_WEIGHT = 16.0


class MusicScore(NamedTuple):
  """Means over the scored ids: `accuracy`, the share whose most likely id is right, and `nats_per_token`."""

  accuracy: float
  nats_per_token: float


def music_baselines(
  train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], *, harmony_only: bool = False
) -> dict[str, MusicScore]:
  """Three predictors that know nothing but the id of the same voice one step before.

  unigram: how often each id occurs in the voice. copy: what sounded goes on, a pitch held and a rest a rest, with the
  share of training ids for which that is right, and else by unigram. bigram: what followed the id before in this
  voice, backed off to unigram.

  Args:
    train, held_out: whole pieces, as `perceiver_lib.data.chorales` reads them (`ChoraleSource.arrays`).
    harmony_only: score alto, tenor and bass alone, as the order soprano_first does.
  """
  before, after, voice = _pairs(train, harmony_only)
  shape = (music.NUM_VOICES, music.VOCABULARY_SIZE, music.VOCABULARY_SIZE)
  counts = np.bincount(np.ravel_multi_index((voice, before, after), shape), minlength=np.prod(shape)).reshape(shape)
  unigram = counts.sum(1) + 1.0
  unigram /= unigram.sum(-1, keepdims=True)
  goes_on = float(np.mean(music.held(before) == after))
  bigram = counts + _UNIGRAM_WEIGHT * unigram[:, None]
  bigram /= bigram.sum(-1, keepdims=True)

  before, after, voice = _pairs(held_out, harmony_only)
  by_unigram = unigram[voice]
  copied = (1 - goes_on) * by_unigram
  copied[np.arange(len(after)), music.held(before)] += goes_on
  return {
    'unigram': _score(by_unigram, after),
    'copy': _score(copied, after),
    'bigram': _score(bigram[voice, before], after),
  }


def _pairs(pieces: Mapping[str, np.ndarray], harmony_only: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids before, scored ids and their voices."""
  grid = music.score(pieces)
  scored = grid['scored'][:, 1:].copy()
  if harmony_only:
    scored[..., 0] = False
  voice = np.nonzero(scored)[2]
  return grid['ids'][:, :-1][scored], grid['ids'][:, 1:][scored], voice


def _score(probabilities: Float64[np.ndarray, 'm e'], truth: np.ndarray) -> MusicScore:
  accuracy = np.mean(probabilities.argmax(-1) == truth)
  return MusicScore(float(accuracy), float(-np.log(probabilities[np.arange(len(truth)), truth]).mean()))
