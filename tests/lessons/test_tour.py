"""What notebook 00 shows can fail: a leak shows in the gradients, a wrong size in a count, a long input in memory."""

from __future__ import annotations

import json

import jax
import numpy as np

from perceiver_lib.experiments.measuring import measure
from perceiver_lib.lessons import tour, tour_probes
from perceiver_lib.models.perceiver import Perceiver
from perceiver_lib.parameters import abstract, filled
from tests.support import ROUNDING, STREAMED, assert_close


def test_the_gradients_of_a_causal_model_keep_the_rule_and_those_of_a_leaking_one_do_not():
  kept, leaking = tour_probes.probes(0)[2], tour_probes.leaking_probe(0)
  assert tour_probes.num_violations(kept, tour_probes.sensitivity(kept, 0)) == 0
  # Every earlier latent of 4 learns of every later one: 3 + 2 + 1 pairs.
  assert tour_probes.num_violations(leaking, tour_probes.sensitivity(leaking, 0)) == 6


def test_an_input_that_should_move_an_output_and_does_not_counts_as_well():
  probe = tour_probes.Probe(name='deaf', outputs=lambda values: 0 * values, allowed=np.ones((3, 3), bool))
  assert tour_probes.num_violations(probe, tour_probes.sensitivity(probe, 0)) == 9


def test_the_step_that_is_measured_and_the_one_it_is_compared_with_are_one_computation():
  model = filled(abstract(Perceiver, tour.byte_perceiver(1031)), scale=0.02)
  tokens = tour.byte_tokens(1031)
  streamed, dense = (measure(tour.byte_step(size), model, tokens, calls=1) for size in (128, 1031))
  assert_close(jax.tree.leaves(streamed[0]), jax.tree.leaves(dense[0]), STREAMED)
  assert streamed[1].temporary_megabytes < dense[1].temporary_megabytes


def test_the_figure_names_both_ways_and_their_sizes():
  row = {
    'start_gigabytes': 0.2, 'peak_gigabytes': 0.7, 'temporary_megabytes': 34.0, 'dense_temporary_megabytes': 2000.0,
    'seconds': 1.0,
  }  # fmt: skip
  figure = tour.memory_figure([{**row, 'num_bytes': 4096}, {**row, 'num_bytes': 16384}])
  assert '4,096 to 16,384' in figure.alt_text and '34 MB' in figure.alt_text and '2.00 GB' in figure.alt_text


def test_the_map_lists_a_notebook_that_exists(tmp_path):
  cells = [
    {'cell_type': 'markdown', 'source': '# A title'},
    {
      'cell_type': 'code',
      'metadata': {'tags': ['parameters']},
      'source': "profile: str = 'demo'\nseed: int = 0\nrun_dir: str = ''",
    },
  ]
  (tmp_path / '07_topic.ipynb').write_text(json.dumps({'cells': cells}))
  assert str(tour.suite_map(tmp_path)).splitlines()[-1] == '| `07_topic` | A title | profile, seed |'


def test_the_unified_model_equals_its_special_cases():
  differences = tour_probes.special_cases(1)
  assert len(differences) == 3
  assert max(differences.values()) < ROUNDING
