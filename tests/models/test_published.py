from __future__ import annotations

import dataclasses

import pytest

from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.published import Preset, presets
from perceiver_lib.parameters import abstract, count


@pytest.mark.parametrize('preset', presets(), ids=lambda preset: preset.name)
def test_a_preset_has_the_published_number_of_parameters(preset: Preset):
  assert count(abstract(preset.model, preset.config)) == preset.parameters


def test_the_shallow_copying_model_too():
  """perceiver-ar, random_mirrored_32: 26.8M."""
  config = dataclasses.replace(PerceiverARConfig.paper_copy(), num_self_attends=1)
  assert round(count(abstract(PerceiverAR, config)) / 1e6, 1) == 26.8
