"""Notebook 08: who keeps the rule, what its mask costs, and that both reads of the bytes are one."""

from __future__ import annotations

import pytest

from perceiver_lib.lessons import unified_io_ar as lesson
from perceiver_lib.scores import causality


def test_the_sketch_breaks_the_rule_and_all_of_ours_keep_it():
  sketch, *ours = (causality.num_violations(p, causality.sensitivity(p, 0)) for p in lesson.probes(0))
  assert sketch > 0 and ours == [0, 0]


def test_blocks_are_planned_with_less_memory_than_the_whole_matrix():
  size = lesson.ProcessorSize(num_timesteps=32, num_latents=64, num_latent_channels=32, num_layers=2, num_heads=8)
  ours, naive = (lesson.processor_gigabytes(size, naive=naive) for naive in (False, True))
  assert 0 < ours < naive / 4


def test_both_reads_of_the_bytes_compute_the_same_loss():
  prefix, general = (lesson.measure_bytes(2**10, how) for how in ('prefix', 'general'))
  assert prefix['loss'] == pytest.approx(general['loss'], rel=1e-5)
