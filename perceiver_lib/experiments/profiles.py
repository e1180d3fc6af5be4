"""The four sizes at which every notebook runs, and how a notebook's recipe picks its values for one of them.

@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  train_steps: int
  batch_size: int = 64

RECIPES = {'smoke': Recipe(train_steps=3), 'demo': Recipe(train_steps=900), 'full': Recipe(train_steps=20_000)}
recipe = pick(RECIPES, profile)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from perceiver_lib.experiments.errors import RequestError

PROFILES: Mapping[str, str] = {
  'smoke': 'the machinery only, about a minute a notebook; its numbers mean nothing',
  'demo': 'the default: really learns, within 5 minutes a notebook on two CPU cores',
  'full': 'one accelerator, minutes to an hour a notebook',
  'paper': 'the published size, on whatever mesh you have',
}

TIME_LIMIT_SECONDS: Mapping[str, float] = {'smoke': 300, 'demo': 1_800, 'full': 6 * 3_600, 'paper': 30 * 24 * 3_600}
"""When a notebook is stopped. Several times the budget of the profile, so that only something stuck reaches it."""

Recipe = TypeVar('Recipe')


def check_profile(profile: str) -> str:
  """Returns the profile, or raises a RequestError that lists the four."""
  if profile not in PROFILES:
    raise RequestError(f'Unknown profile {profile!r}; choose one of {", ".join(PROFILES)}.')
  return profile


def pick(recipes: Mapping[str, Recipe], profile: str) -> Recipe:
  """The row of a notebook's table for a profile.

  Raises:
    RequestError: for a name that is no profile, or a profile that this notebook does not offer.
  """
  check_profile(profile)
  if profile not in recipes:
    raise RequestError(f'This notebook has no {profile!r} profile; it offers {", ".join(recipes)}.')
  return recipes[profile]
