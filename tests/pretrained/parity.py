"""Models of the published sizes with random weights, in transformers or perceiver-io and here, beside each other.

    python -m tests.pretrained.parity [KIND ...]

Needs what `torch_models` says. Ends with an error if outputs differ by more than the table below allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
from safetensors.numpy import save_file

from perceiver_lib import load_pretrained
from tests.pretrained import torch_models
from tests.pretrained.cases import answer, relative_error

ALLOWED = {'outputs.audio': 1.5e-5}
"""Over the largest output; the top bands of the sound's Fourier features round by a thousandth of a turn."""
OTHERS = 2e-6


def compared(kind: str) -> dict[str, float]:
  """Relative differences of outputs, and of latents after every layer."""
  if kind == 'ar':
    case, mode = torch_models.krasserm('ar_text', small=False), {}
  else:
    case, mode = torch_models.hugging_face(kind, small=False, batch_size=1), {'mode': 'hugging_face'}
  with tempfile.TemporaryDirectory() as folder:
    save_file(case.weights, Path(folder) / 'model.safetensors')
    (Path(folder) / 'config.json').write_text(json.dumps(case.settings))
    case.weights.clear()
    start = time.perf_counter()
    model = load_pretrained(folder, **mode)
    print(f'{kind}: converted in {time.perf_counter() - start:.1f} s', flush=True)
  found = jax.jit(lambda model: answer(model, kind, case.inputs))(model)
  return {part: relative_error(found[part], case.answer[part]) for part in case.answer}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('kinds', nargs='*', metavar='KIND', default=[*torch_models.FULL])
  wrong = False
  for kind in parser.parse_args().kinds:
    for part, error in compared(kind).items():
      allowed = ALLOWED.get(part, OTHERS)
      within = part == 'layers' or error <= allowed
      wrong |= not within
      print(f'{kind} {part}: {error:.1e}{"" if within else f", more than {allowed:.1e}"}', flush=True)
  return int(wrong)


if __name__ == '__main__':
  sys.exit(main())
