"""Models of the published sizes with random weights, in transformers or perceiver-io and here, beside each other.

    python -m tests.pretrained.parity [KIND ...]

Needs what `torch_models` says. Ends with an error if outputs differ by more than ALLOWED.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from safetensors.numpy import save_file

from perceiver_lib import load_pretrained
from perceiver_lib.modalities import multimodal, pixels, video
from perceiver_lib.models import convolution
from perceiver_lib.positions import FourierFeatures
from tests.pretrained import cases, torch_models
from tests.pretrained.cases import answer, relative_error

ALLOWED = 2e-6
"""Largest difference of outputs over the largest output."""


def as_torch_rounds() -> None:
  """Places, bands and the order of two products as in transformers, whose last bits are 1e-4 of a top band's sine.

  Ours are the nearest numbers to the exact ones. What is left afterwards is due to the models.
  """

  def features(self: FourierFeatures, position: jax.Array) -> jax.Array:
    bands = [torch.linspace(1, n / 2, self.num_bands).numpy() for n in self.max_resolution]
    angles = np.float32(math.pi) * (position[..., None] * np.stack(bands)[None, None])
    angles = rearrange(angles, 'b m p k -> b m (p k)')
    return jnp.concatenate([position, jnp.sin(angles), jnp.cos(angles)], axis=-1)

  def grid(shape: tuple[int, ...], *, end_points: bool = True) -> np.ndarray:
    steps = [torch.linspace(-1, 1, n) if end_points else -1 + 2 * torch.arange(n) / n for n in shape]
    return np.stack(np.meshgrid(*(axis.numpy() for axis in steps), indexing='ij'), -1).reshape(-1, len(shape))

  FourierFeatures.__call__ = features
  for module in (cases, multimodal, pixels, video, convolution):
    module.grid = grid


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
  as_torch_rounds()
  for kind in parser.parse_args().kinds:
    for part, error in compared(kind).items():
      within = part == 'layers' or error <= ALLOWED
      wrong |= not within
      print(f'{kind} {part}: {error:.1e}{"" if within else f", more than {ALLOWED:.1e}"}', flush=True)
  return int(wrong)


if __name__ == '__main__':
  sys.exit(main())
