"""What is measured on attention maps `[..., m]` over the inputs, beside what chance would show.

Nothing here knows how a map was made: weights, rollout, gradients and leave-one-out are scored alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


def stripes_share(maps: Float[np.ndarray, '*n y x']) -> float:
  """Share of the maps' variance that is a function of the row plus a function of the column: 1 for a tartan.

  A map of independent noise has (y + x - 2) / (y x - 1).
  """
  rows, columns = maps.mean(-1, keepdims=True), maps.mean(-2, keepdims=True)
  stripes = rows + columns - maps.mean((-1, -2), keepdims=True)
  return float(1 - ((maps - stripes) ** 2).mean() / maps.var((-1, -2)).mean())


def likeness(maps: Float[np.ndarray, 'b n m'], values: Float[np.ndarray, 'b m']) -> float:
  """Mean squared correlation of a map with the input's own values: the share of it that is a copy or a negative."""
  values = (values - values.mean(-1, keepdims=True))[:, None]
  maps = maps - maps.mean(-1, keepdims=True)
  norms = (values**2).sum(-1) * (maps**2).sum(-1)
  return float(((maps * values).sum(-1) ** 2 / np.where(norms > 0, norms, 1)).mean())


CHARACTERS: Mapping[str, bytes] = {
  'a space or line break': b' \n',
  'punctuation': b'.,;:!?-\'"[]()*_',
  'a capital': bytes(range(65, 91)),
  'a vowel': b'aeiou',
  'a consonant': bytes(set(range(97, 123)) - set(b'aeiou')),
}


@dataclasses.dataclass(frozen=True)
class Chosen:
  """One head of one latent, and the numbers by which it was chosen."""

  kind: str
  head: int
  latent: int
  position_share: float
  num_places: float
  reason: str


def position_shares(weights: Float[np.ndarray, 'b h n m']) -> Float[np.ndarray, 'h n']:
  """Share of each map's variance over characters that is the same in all sentences, hence due to the place alone.

  A map that is flat everywhere has nothing left to explain: 1.
  """
  whole = weights.var(-1).mean(0)
  return np.where(whole > 0, weights.mean(0).var(-1) / np.where(whole > 0, whole, 1), 1)


def num_places(weights: Float[np.ndarray, '*n m']) -> Float[np.ndarray, '*n']:
  """exp(entropy): over how many inputs a map is spread, from 1 to m."""
  entropy = -np.sum(weights * np.log(np.where(weights > 0, weights, 1)), axis=-1)
  return np.exp(entropy)


def periodicity(weights: Float[np.ndarray, 'b h n m']) -> tuple[Float[np.ndarray, 'h n'], Int[np.ndarray, 'h n']]:
  """The largest share of the mean map's power that one frequency of 2 or more cycles has, and that frequency."""
  power = np.abs(np.fft.rfft(weights.mean(0), axis=-1)) ** 2
  share = power[..., 2:] / np.maximum(power[..., 1:].sum(-1, keepdims=True), 1e-30)
  return share.max(-1), share.argmax(-1) + 2


def preferences(
  weights: Float[np.ndarray, 'b h n m'], text: UInt8[np.ndarray, 'b m']
) -> dict[str, Float[np.ndarray, 'h n']]:
  """How many times the weight a kind of character gets that its places alone would give it: 1 = content is nothing."""
  kinds = {name: np.isin(text, np.frombuffer(characters, np.uint8)) for name, characters in CHARACTERS.items()}
  kinds['the first letter of a word'] = word_starts(text)
  by_place = weights.mean(0)
  return {
    name: np.einsum('bhnm,bm->hn', weights, is_kind) / np.maximum(np.einsum('hnm,bm->hn', by_place, is_kind), 1e-30)
    for name, is_kind in kinds.items()
  }


def word_starts(text: UInt8[np.ndarray, 'b m']) -> Bool[np.ndarray, 'b m']:
  """Letters behind something that is no letter."""
  letter = ((text | 32) >= 97) & ((text | 32) <= 122)
  return letter & ~np.concatenate([np.zeros_like(letter[:, :1]), letter[:, :-1]], axis=1)


def three_kinds(weights: Float[np.ndarray, 'b h n m'], text: UInt8[np.ndarray, 'b m']) -> list[Chosen]:
  """One example each of the paper's three kinds of query (IO, Fig. 7), by a rule and not by eye.

  one place            the largest weight on one place, in the mean over sentences
  a stretch of places  of the maps that their place explains to 80 % and that hold 3 places or more, the most periodic
  place and content    the map that its place explains least
  """
  shares, places = position_shares(weights), num_places(weights).mean(0)
  largest, (periodic, _) = weights.mean(0).max(-1), periodicity(weights)
  spread = np.where((shares >= 0.8) & (places >= 3), periodic, -1)
  picks = {
    'one place': (largest, '{:.0%} of the weight on one place'.format),
    'a stretch of places': (spread, '{:.0%} of the power at one frequency'.format),
    'place and content': (-shares, lambda value: f'its place explains {-value:.0%} only'),
  }
  chosen = []
  for kind, (score, reason) in picks.items():
    head, latent = np.unravel_index(score.argmax(), score.shape)
    chosen.append(
      Chosen(
        kind, int(head), int(latent), float(shares[head, latent]), float(places[head, latent]),
        reason(float(score[head, latent])),
      )
    )  # fmt: skip
  return chosen


def lookup_mass(
  weights: Float[np.ndarray, 'b h n m'], last: Int[np.ndarray, 'b n'], length: int
) -> Float[np.ndarray, 'h']:
  """Attention of each head on the byte to be copied, by latents in the second half: 1 = nowhere else.

  The input at index t is followed by the copy of the one at `length` - 2 - t.
  """
  copies = last >= length // 2 - 1
  source = np.clip(length - 2 - last, 0, weights.shape[-1] - 1)
  mass = np.take_along_axis(weights, source[:, None, :, None], axis=-1)[..., 0]
  return np.where(copies[:, None], mass, 0).sum((0, 2)) / copies.sum()


def uniform_mass(last: Int[np.ndarray, 'b n'], length: int) -> float:
  """What `lookup_mass` is for weights that are equal over all that a latent may see."""
  copies = last >= length // 2 - 1
  return float((copies / (last + 1)).sum() / copies.sum())


def profile(
  weights: Float[np.ndarray, 'b h n m'], offset: Int[np.ndarray, 'n m'], allowed: Bool[np.ndarray, 'n m']
) -> tuple[Int[np.ndarray, 'd'], Float[np.ndarray, 'h d']]:
  """Mean attention of each head at each offset between query and key, over the pairs that the rule allows."""
  offsets = np.unique(offset[allowed])
  mean = weights.mean(0)
  rows = [mean[:, allowed & (offset == value)].mean(-1) for value in offsets]
  return offsets, np.stack(rows, axis=-1)


class OnTruth(NamedTuple):
  """Means in %: the share of a map that lies on the true place, and how often the true place has the largest share."""

  mass: float
  largest: float


def on_truth(
  maps: Float[np.ndarray, 'b t m'], copied: Int[np.ndarray, 'b t'], readable: Bool[np.ndarray, 'b m']
) -> OnTruth:
  """Scores the maps of those outputs that copy one symbol of the source in every example.

  Args:
    maps: how much an output rests on each symbol of the source, in any unit; what is negative counts as 0.
    copied: the place that an output copies, -1 for none.
    readable: False = padding of the source, on which no map is counted.
  """
  scored = (copied >= 0).all(0)
  places = copied[:, scored, None]
  maps = np.where(readable[:, None], np.maximum(maps[:, scored], 0), 0).astype(np.float64)
  total = maps.sum(-1, keepdims=True)
  flat = readable[:, None] / readable.sum(-1)[:, None, None]
  maps = np.where(total > 0, maps / np.where(total > 0, total, 1), flat)
  on_place = np.take_along_axis(maps, places, axis=-1)
  return OnTruth(100 * float(on_place.mean()), 100 * float((maps.argmax(-1) == places[..., 0]).mean()))
