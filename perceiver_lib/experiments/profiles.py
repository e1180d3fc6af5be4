"""The four sizes at which a notebook can run; `run.sizes` picks a notebook's own values for one of them."""

from __future__ import annotations

from collections.abc import Mapping

from perceiver_lib.experiments.errors import RequestError

PROFILES: Mapping[str, str] = {
  'smoke': 'the machinery only, about a minute a notebook; its numbers mean nothing',
  'demo': 'the default: really learns, in minutes a notebook on two CPU cores',
  'full': 'one accelerator, minutes to an hour a notebook',
  'paper': 'the published size, on whatever mesh you have; no notebook offers it yet',
}

TIME_LIMIT_SECONDS: Mapping[str, float] = {'smoke': 300, 'demo': 1_800, 'full': 6 * 3_600, 'paper': 30 * 24 * 3_600}
"""When a notebook is stopped. Several times the budget of the profile, so that only something stuck reaches it."""


def check_profile(profile: str) -> str:
  """Returns the profile, or raises a RequestError that lists the four."""
  if profile not in PROFILES:
    raise RequestError(f'Unknown profile {profile!r}; choose one of {", ".join(PROFILES)}.')
  return profile
