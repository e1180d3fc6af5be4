"""What a program costs: compiled once, called as often as asked, weighed, and never with numbers that mean nothing."""

from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.experiments import measuring


def test_a_cost_is_that_of_a_program_and_its_result_comes_with_it():
  x = jnp.linspace(0, 1, 31 * 37).reshape(31, 37)
  result, cost = measuring.measure(lambda x: jnp.sum(jnp.tanh(x @ x.T) @ x), x)
  assert float(result) == pytest.approx(float(np.sum(np.tanh(x @ x.T) @ x)), rel=1e-5)
  assert cost.seconds > 0 and cost.compile_seconds > 0
  assert cost.temporary_megabytes >= 31 * 31 * 4 / 1e6 and 0.05 < cost.peak_gigabytes <= measuring.peak_bytes() / 1e9


def test_what_is_not_finite_has_no_cost():
  with pytest.raises(ValueError, match='not finite'):
    measuring.measure(jnp.log, jnp.zeros(3) - 1)


def test_calls_are_visited_in_turn_and_the_first_round_does_not_count():
  order = []
  calls = {name: lambda name=name: order.append(name) for name in 'ab'}
  seconds = measuring.in_turn(calls, rounds=2)
  assert ''.join(order) == 'ababab' and [len(values) for values in seconds.values()] == [2, 2]


def test_an_exponent_is_that_of_the_values():
  sizes = [2**10, 2**12, 2**14]
  assert measuring.exponent(sizes, [3e-6 * size**1.5 for size in sizes]) == pytest.approx((1.5, 3e-6))


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it():
  held = np.ones(400_000_000 // 8)
  code = 'from perceiver_lib.experiments import measuring; print(measuring.peak_bytes())'
  peak = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
  assert measuring.peak_bytes() > held.nbytes > peak > 10_000_000
