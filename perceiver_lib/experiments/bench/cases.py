"""Every case of `python -m perceiver_lib bench`, by name."""

from __future__ import annotations

from perceiver_lib.experiments.bench import account, long_inputs, machine, overhead, published_sizes, sequences

CASES = {
  **machine.CASES,
  **published_sizes.CASES,
  **long_inputs.CASES,
  **sequences.CASES,
  **account.CASES,
  **overhead.CASES,
}
