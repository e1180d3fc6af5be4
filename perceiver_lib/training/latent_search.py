"""How many latents does a task need? A search that doubles their number for as long as that pays.

The papers set N by hand (Perceiver: 512 on ImageNet; Perceiver IO: 256 on text and 2,048 for optical flow), and the
cost of reading grows in proportion to it. Trying sizes upwards never pays for a model much larger than the one that is
taken: of the sizes 1, 2, 4 ... the largest trial costs about as much as all before it together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSearch:
  """What a search found.

  Attributes:
    num_latents: the smallest number whose score is within the tolerance of the best.
    scores: of every number that was tried, in that order.
    stopped_early: whether the gains ended before the limit was reached; if not, a larger limit may find more.
  """

  num_latents: int
  scores: Mapping[int, float]
  stopped_early: bool


def search_num_latents(
  score: Callable[[int], float], *, tolerance: float, limit: int, start: int = 1, patience: int = 2
) -> LatentSearch:
  """Doubles the number of latents until `patience` doublings in a row, together, gain less than `tolerance`.

  A gain is over the last number that was worth its cost, so that small gains add up.

  Args:
    score: trains a model with so many latents and returns its score on validation data, higher is better. Its noise
      from seed to seed should be below the tolerance: average over seeds, or raise the tolerance.
    tolerance: the gain that a doubling of the cost must bring, in units of the score.
    limit: the largest number that may be tried.
    start: the smallest number.
    patience: after how many doublings without a gain the search ends; 1 trusts a single comparison.

  Raises:
    ValueError: for a tolerance that is not positive, for other numbers below 1, a limit below the start, or a score
      that is not finite.
  """
  if not tolerance > 0 or start < 1 or patience < 1 or limit < start:
    raise ValueError(
      'A search needs a tolerance above 0, start and patience of 1 or more, and a limit that is not below the start; '
      f'got tolerance={tolerance}, start={start}, patience={patience}, limit={limit}.'
    )
  scores: dict[int, float] = {}
  without_gain, num_latents, reached = 0, start, -math.inf
  while num_latents <= limit and without_gain < patience:
    scores[num_latents] = float(score(num_latents))
    if not math.isfinite(scores[num_latents]):
      raise ValueError(f'The score with {num_latents} latents is {scores[num_latents]}; it must be a finite number.')
    if scores[num_latents] - reached >= tolerance:
      without_gain, reached = 0, scores[num_latents]
    else:
      without_gain += 1
    num_latents *= 2
  best = max(scores.values())
  enough = min(number for number, value in scores.items() if value > best - tolerance)
  return LatentSearch(num_latents=enough, scores=scores, stopped_early=without_gain >= patience)
