"""What a program costs: one way to compile, time and weigh it, alone or in turn with others.

Only a fresh process has a peak of memory that says something: `experiments.workers` starts it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# JAX is imported where it is needed: a process that measures another package would carry its memory.

Call = Callable[[], Any]


def compiled(function: Callable[..., Any], *inputs: Any) -> Any:
  """A function compiled for inputs of these shapes, which may be abstract; nothing is run."""
  import jax

  return jax.jit(function).lower(*inputs).compile()


def temporary_megabytes(program: Any) -> float:
  """What a compiled program sets aside besides its inputs and outputs."""
  return program.memory_analysis().temp_size_in_bytes / 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Of one program: `seconds` of its last call, and the most memory that the process held until then."""

  seconds: float
  compile_seconds: float
  peak_gigabytes: float
  temporary_megabytes: float


def measure(function: Callable[..., Any], *inputs: Any, calls: int = 2) -> tuple[Any, Cost]:
  """Compiles a function, calls it so many times, and returns what it gave and what it cost.

  Raises:
    ValueError: if it gave something that is not finite: what that costs means nothing.
  """
  import jax

  begin = time.perf_counter()
  program = compiled(function, *inputs)
  compile_seconds = time.perf_counter() - begin
  for _ in range(calls):
    begin = time.perf_counter()
    result = jax.block_until_ready(program(*inputs))
    seconds = time.perf_counter() - begin
  cost = Cost(
    seconds=seconds,
    compile_seconds=compile_seconds,
    peak_gigabytes=peak_bytes() / 1e9,
    temporary_megabytes=temporary_megabytes(program),
  )
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result)):
    raise ValueError('The program that was measured gave numbers that are not finite; its cost means nothing.')
  return result, cost


def in_turn(calls: Mapping[Any, Call], rounds: int) -> dict[Any, list[float]]:
  """Seconds of every call, the rounds visiting them in turn, after one call of each that compiles."""
  import jax

  seconds: dict[Any, list[float]] = {name: [] for name in calls}
  for number in range(rounds + 1):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      if number:
        seconds[name].append(time.perf_counter() - begin)
  return seconds


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
  """The power of the size that values grow with, and the value at size 1, by least squares of logarithms."""
  slope, start = np.polyfit(np.log(sizes), np.log(values), deg=1)
  return float(slope), float(np.exp(start))


def peak_bytes() -> int:
  """The most memory this process has held.

  Linux gives it by /proc: the `ru_maxrss` of a process also counts what its parent held when it started it, which in a
  notebook would be the kernel's.
  """
  try:
    status = Path('/proc/self/status').read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith('VmHWM'))
  except (OSError, StopIteration):
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
