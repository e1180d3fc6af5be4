"""What a model of chorales must beat: counts of the training pieces, with and without ears for the other voices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from perceiver_lib.modalities import music

_UNIGRAM_WEIGHT = 16.0
_KEYS = range(-music.MAX_TRANSPOSITION, music.MAX_TRANSPOSITION + 1)
_FEATURES = ('voice', 'before', 'voice above', 'on the beat', 'second', 'third', 'two before')
"""Of a context, in the order in which it is refined; the last is the first to be forgotten."""
_WEIGHT_OF_VARIETY = 0.5 * len(_KEYS)
"""Pseudo-counts for each different id that has followed a context; chosen on the validation tunes, as is the order."""


class MusicScore(NamedTuple):
  """Means over the scored ids: `accuracy`, the share whose most likely id is right, and `nats_per_token`."""

  accuracy: float
  nats_per_token: float


class MusicCounts:
  """Four predictors that only count.

  unigram: how often each id occurs in the voice. copy: what sounded goes on, a pitch held and a rest a rest, with the
  share of the voice's training ids for which that is right, and else by unigram. bigram: what followed the id before in
  this voice, backed off to unigram. chord: what followed the two ids before in this voice, while the other voices sang
  what they sing now (those that are written later: what they sang last), on or off the beat; counted in the keys that a
  model is trained on, and backed off one feature at a time (Witten and Bell 1991).
  """

  def __init__(self, train: Mapping[str, np.ndarray]):
    """Counts whole pieces, as `perceiver_lib.data.chorales` reads them (`ChoraleSource.arrays`)."""
    grid = music.score(train)
    before, after, voice = _pairs(grid, _scored(grid))
    shape = (music.NUM_VOICES, music.VOCABULARY_SIZE, music.VOCABULARY_SIZE)
    counts = np.bincount(np.ravel_multi_index((voice, before, after), shape), minlength=np.prod(shape)).reshape(shape)
    unigram = counts.sum(1) + 1.0
    self.unigram = unigram / unigram.sum(-1, keepdims=True)
    self.goes_on = np.bincount(voice, music.held(before) == after) / np.maximum(np.bincount(voice), 1)
    bigram = counts + _UNIGRAM_WEIGHT * self.unigram[:, None]
    self.bigram = bigram / bigram.sum(-1, keepdims=True)
    keys = [grid | {'ids': music.transpose(grid['ids'], semitones)} for semitones in _KEYS]
    contexts = np.concatenate([_contexts(key, _scored(key)) for key in keys])
    after = np.concatenate([_pairs(key, _scored(key))[1] for key in keys])
    self.followed = [
      np.unique(_packed(contexts[:, : length + 1], after), return_counts=True) for length in range(len(_FEATURES))
    ]

  def scores(self, held_out: Mapping[str, np.ndarray], *, harmony_only: bool = False) -> dict[str, MusicScore]:
    """Each predictor on whole pieces; with `harmony_only` on alto, tenor and bass alone, as in soprano_first."""
    grid = music.score(held_out)
    scored = _scored(grid, harmony_only)
    before, after, voice = _pairs(grid, scored)
    copied = (1 - self.goes_on)[voice, None] * self.unigram[voice]
    copied[np.arange(len(after)), music.held(before)] += self.goes_on[voice]
    predicted = {
      'unigram': self.unigram[voice],
      'copy': copied,
      'bigram': self.bigram[voice, before],
      'chord': self._with_chords(_contexts(grid, scored)),
    }
    return {name: _score(probabilities, after) for name, probabilities in predicted.items()}

  def _with_chords(self, contexts: Int64[np.ndarray, 'm f']) -> Float64[np.ndarray, 'm e']:
    ids = np.arange(music.VOCABULARY_SIZE)
    probabilities = np.full((len(contexts), len(ids)), 1 / len(ids))
    for length, (pairs, counts) in enumerate(self.followed):
      asked = _packed(contexts[:, None, : length + 1], ids)
      place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
      found = np.where(pairs[place] == asked, counts[place], 0)
      variety = np.maximum((found > 0).sum(-1, keepdims=True), 1)
      unseen = _WEIGHT_OF_VARIETY * variety
      probabilities = (found + unseen * probabilities) / (found.sum(-1, keepdims=True) + unseen)
    return probabilities


def _scored(grid: music.Score, harmony_only: bool = False) -> Bool[np.ndarray, 'b t 4']:
  scored = grid['scored'].copy()
  scored[:, 0] = False
  scored[..., 0] &= not harmony_only
  return scored


def _pairs(grid: music.Score, scored: Bool[np.ndarray, 'b t 4']) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids before, scored ids and their voices."""
  piece, step, voice = np.nonzero(scored)
  return grid['ids'][piece, step - 1, voice], grid['ids'][piece, step, voice], voice


def _contexts(grid: music.Score, scored: Bool[np.ndarray, 'b t 4']) -> Int64[np.ndarray, 'm f']:
  """The `_FEATURES` of each scored id. Voices are written from the top, so a later one is heard a step late."""
  ids, (piece, step, voice) = grid['ids'], np.nonzero(scored)
  above, second, third = ((voice - back) % music.NUM_VOICES for back in (1, 2, 3))
  heard = lambda other: ids[piece, step - (other > voice), other]  # noqa: E731
  on_the_beat = grid['step_in_bar'][piece, step] % 2 == 0
  two_before = ids[piece, np.maximum(step - 2, 0), voice]
  features = [voice, ids[piece, step - 1, voice], heard(above), on_the_beat, heard(second), heard(third), two_before]
  return np.stack(features, axis=-1).astype(np.int64)


def _packed(contexts: Int64[np.ndarray, '... f'], following: Int[np.ndarray, '...']) -> Int64[np.ndarray, '...']:
  """A context and an id as one number of 7 bits each."""
  number = np.zeros(contexts.shape[:-1], np.int64)
  for feature in range(contexts.shape[-1]):
    number = number << 7 | contexts[..., feature]
  return number << 7 | following


def _score(probabilities: Float64[np.ndarray, 'm e'], truth: np.ndarray) -> MusicScore:
  accuracy = np.mean(probabilities.argmax(-1) == truth)
  return MusicScore(float(accuracy), float(-np.log(probabilities[np.arange(len(truth)), truth]).mean()))
