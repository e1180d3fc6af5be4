"""The golden files as the folders that a user would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / 'golden'
NAMES = sorted(path.stem for path in GOLDEN.glob('*.npz'))


class GoldenCase(NamedTuple):
  """Attributes: as of `torch_models.Case`, and `kind`, without the source before it."""

  kind: str
  weights: dict[str, np.ndarray]
  settings: dict
  inputs: dict[str, np.ndarray]
  answer: dict[str, np.ndarray]

  def write(self, folder: Path) -> Path:
    save_file(self.weights, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(self.settings))
    return folder


def golden(name: str) -> GoldenCase:
  with np.load(GOLDEN / f'{name}.npz') as stored:
    groups = {'weight': {}, 'input': {}, 'answer': {}}
    for key in stored.files:
      group, _, rest = key.partition('/')
      if rest:
        groups[group][rest] = stored[key].astype(np.float32) if stored[key].dtype == np.float16 else stored[key]
    settings = json.loads(str(stored['settings']))
  kind = name.partition('krasserm_')[2] or name.partition('hugging_face_')[2]
  return GoldenCase(
    'ar' if kind.startswith('ar') else kind, groups['weight'], settings, groups['input'], groups['answer']
  )
