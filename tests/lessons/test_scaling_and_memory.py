"""Notebook 10: exponents, counted operations, and what each model's step is."""

from __future__ import annotations

import numpy as np
import pytest

from perceiver_lib.lessons import scaling_and_memory as lesson


def rows_of(power, lengths=(2**10, 2**12, 2**14)):
  return [{'num_bytes': m, 'seconds': [3e-6 * m**power] * 2, 'operations': 5 * m, 'kind': 'dense'} for m in lengths]


def test_the_growth_is_that_of_the_rows():
  power, start = lesson.growth(rows_of(1.5), lambda row: np.median(row['seconds']))
  assert power == pytest.approx(1.5) and start == pytest.approx(3e-6)
  assert [row['num_bytes'] for row in lesson.fit_rows(rows_of(1.0), 12)] == [2**12, 2**14]


def test_what_was_not_run_is_predicted_by_its_operations():
  rows = [*rows_of(1.0), {'num_bytes': 2**20, 'seconds': [], 'operations': 5 * 2**20}, {'num_bytes': 2, 'seconds': []}]
  predicted = lesson.predicted_seconds(rows)
  assert list(predicted) == [2**14, 2**20]
  assert predicted[2**20] == pytest.approx(3e-6 * 2**20)


@pytest.mark.parametrize('kind', ['streamed', 'dense', 'ar', 'transformer'])
def test_operations_of_a_perceiver_are_linear_in_its_input_and_those_of_a_transformer_are_not(kind):
  short, middle, long = (lesson.problem(kind, 2**log2, num_layers=1).forward_operations() for log2 in (13, 14, 15))
  growth = (long - middle) / (middle - short)
  assert growth == pytest.approx(2.0, abs=1e-3) if kind != 'transformer' else growth > 2.8


def test_a_step_on_a_thousand_bytes_runs_and_a_dense_one_counts_fewer_operations():
  what = lesson.problem('streamed', 2**10, num_latents=16, num_layers=1)
  call, program = what.step()
  call()
  assert program.memory_analysis().temp_size_in_bytes > 0
  assert 2.9 < what.operations() / what.forward_operations() < 4.5


def test_a_process_measures_several_lengths_in_turn():
  rows = lesson.sweep('streamed', {4: 2}, num_layers=1)
  rows = [*rows, dict(rows[0], num_bytes=32, seconds=[])]
  assert [len(row['seconds']) for row in rows] == [2, 0] and all(row['temporary_megabytes'] > 0 for row in rows)
  text = str(lesson.table([*rows, {'kind': 'dense', 'num_bytes': 64, 'seconds': [], 'status': 'out of memory'}]))
  assert 'compiled only' in text and '| 64 | out of memory |' in text


def test_data_sheets_are_found_by_the_name_of_the_device():
  assert lesson.published_bf16('NVIDIA H100 80GB HBM3') == 989e12
  assert lesson.published_bf16('NVIDIA A100-SXM4-80GB') == 312e12
  assert lesson.published_bf16('a card of next year') is None


def test_questions_to_one_encoding_and_decoding_in_chunks():
  seconds = lesson.seconds_of_questions(64, (1, 2), rounds=1)
  assert set(seconds) == {(name, k) for name in ('encoded once', 'whole calls') for k in (1, 2)}
  at_once, in_chunks = lesson.decoding_megabytes((13,)).values()
  assert at_once[0] > 2 * in_chunks[0]
