"""Every case of `python -m perceiver_lib bench`, by name."""

from __future__ import annotations

from typing import Any

from perceiver_lib.experiments.bench import account, long_inputs, machine, overhead, published_sizes, sequences
from perceiver_lib.experiments.measuring import Call

CASES = {
  **machine.CASES,
  **published_sizes.CASES,
  **long_inputs.CASES,
  **sequences.CASES,
  **account.CASES,
  **overhead.CASES,
}


def contender(case: str, name: str) -> tuple[dict[str, Any], Call]:
  """What a worker is given: a contender, built and called once, with nothing to say of it."""
  call = CASES[case].contenders[name].build()
  call()
  return {}, call
