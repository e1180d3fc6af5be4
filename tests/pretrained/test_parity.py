"""Small models of other programs, whose weights and answers are in golden/, loaded and asked the same."""

from __future__ import annotations

import jax
import pytest

from perceiver_lib import PerceiverAR, PerceiverIO
from tests.pretrained.cases import answer, relative_error
from tests.pretrained.golden_files import NAMES, golden

PARITY = 1e-5
"""Two float32 programs: largest difference over the largest magnitude, of latents after every layer and of outputs."""


@pytest.mark.parametrize('name', NAMES)
def test_latents_of_every_layer_and_outputs_are_those_of_the_other_program(tmp_path, name):
  case = golden(name)
  kind = PerceiverAR if case.kind == 'ar' else PerceiverIO
  mode = {} if case.kind == 'ar' else {'mode': 'hugging_face'}
  model = kind.from_pretrained(case.write(tmp_path), **mode)
  found = jax.jit(lambda model: answer(model, case.kind, case.inputs))(model)
  assert sorted(found) == sorted(case.answer)
  errors = {part: relative_error(found[part], case.answer[part]) for part in found}
  assert max(errors.values()) <= PARITY, errors
  print(errors)
