"""What notebook 00 measures: the same computation streamed and at once, in another memory."""

from __future__ import annotations

import json

import jax

from perceiver_lib.experiments.measuring import measure
from perceiver_lib.lessons import tour
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.scores import causality
from tests.support import STREAMED, assert_close


def test_the_step_that_is_measured_and_the_one_it_is_compared_with_are_one_computation():
  model = filled(abstract(Perceiver, PerceiverConfig.of_bytes(1031)), scale=0.02)
  tokens = tour.random_bytes(1031)
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


def test_the_gradients_of_a_causal_model_keep_the_rule_and_those_of_a_leaking_one_do_not():
  kept, leaking = tour.probes(0)[2], tour.leaking_probe(0)
  assert causality.num_violations(kept, causality.sensitivity(kept, 0)) == 0
  # Every earlier latent of 4 learns of every later one: 3 + 2 + 1 pairs.
  assert causality.num_violations(leaking, causality.sensitivity(leaking, 0)) == 6
