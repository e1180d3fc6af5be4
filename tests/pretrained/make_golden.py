"""Writes golden/*.npz: small models of transformers and of perceiver-io with random weights, inputs and answers.

    python -m tests.pretrained.make_golden

Needs what `torch_models` says. Each file holds `weight/<name>` in float16, which they are exact in, `input/...`,
`answer/...`, and `settings`, the text of `config.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.pretrained import torch_models

GOLDEN = Path(__file__).parent / 'golden'


def main() -> None:
  cases = {f'hugging_face_{kind}': torch_models.hugging_face(kind, small=True) for kind in torch_models.SMALL}
  cases |= {f'krasserm_{kind}': torch_models.krasserm(kind) for kind in torch_models.KRASSERM}
  for name, case in cases.items():
    weights = {}
    for key, array in case.weights.items():
      weights[f'weight/{key}'] = array if array.dtype != np.float32 else array.astype(np.float16)
    arrays = {
      **weights,
      **{f'input/{key}': array for key, array in case.inputs.items()},
      **{f'answer/{key}': array for key, array in case.answer.items()},
    }
    path = GOLDEN / f'{name}.npz'
    np.savez_compressed(path, settings=np.array(json.dumps(case.settings)), **arrays)
    print(f'{path.stat().st_size:9,}  {name}')
  numbers = torch.arange(12.0).reshape(3, 4)
  torch.save(
    {
      'whole': numbers,
      'turned': numbers[1:].T,
      'half': numbers.half(),
      'brain': numbers.bfloat16(),
      'count': torch.tensor(7),
    },
    GOLDEN / 'tensors.bin',
  )


if __name__ == '__main__':
  main()
