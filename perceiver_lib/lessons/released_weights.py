"""Notebook 11: released weights where they can be had, and small stand-ins with random numbers where not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8
from safetensors.numpy import save_file

from perceiver_lib.experiments.files import project_root
from perceiver_lib.modalities.pixels import pixel_tokens
from perceiver_lib.pretrained import load_pretrained
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.checkpoints import CheckpointError

NOT_ATTEMPTED = 'not attempted: no weights'
SENTENCE = 'This is an incomplete sentence where some words are missing.'
PUBLISHED_LOGITS = np.array(
  [[-10.8609, -10.7651, -10.9187], [-12.1689, -11.9389, -12.1479], [-12.1518, -11.9707, -12.2073]]
)
"""Of the language model for `SENTENCE` with [CLS] and [SEP], ids 52 to 60 masked: `logits[0, :3, :3]` in the tests of
transformers (`tests/models/perceiver/test_modeling_perceiver.py`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandIn:
  """A small model of another program with random weights, an example, and that program's answer to it.

  Attributes:
    folder: holds `model.safetensors` and `config.json`, as a download would.
  """

  folder: Path
  inputs: Mapping[str, np.ndarray]
  outputs: Float[np.ndarray, '...']


def stand_ins(folder: Path, *names: str) -> dict[str, StandIn]:
  """The golden files of the tests, unpacked below a folder.

  Args:
    names: such as 'hugging_face_language'.
  """
  unpacked = {}
  for name in names:
    with np.load(project_root() / 'tests' / 'pretrained' / 'golden' / f'{name}.npz') as stored:
      parts = {key: stored[key] for key in stored.files}
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    weights = {key.removeprefix('weight/'): array for key, array in parts.items() if key.startswith('weight/')}
    save_file(weights, place / 'model.safetensors')
    (place / 'config.json').write_text(json.dumps(json.loads(str(parts['settings']))))
    inputs = {key.removeprefix('input/'): array for key, array in parts.items() if key.startswith('input/')}
    unpacked[name] = StandIn(folder=place, inputs=inputs, outputs=parts['answer/outputs'])
  return unpacked


def attempt(name: str, weights: str, **settings: Any) -> nnx.Module | None:
  """A released model, or None and a line that says why not.

  Args:
    name: on the hub.
    weights: a folder that holds repositories by their names; empty = the hub and its cache.
    settings: of `load_pretrained`.
  """
  source = Path(weights).expanduser() / name if weights else name
  try:
    return load_pretrained(source, **settings)
  except (FileNotFoundError, CheckpointError) as error:
    print(f'{name:40} {NOT_ATTEMPTED} ({error})')
    return None


def text_tokens(ids: Int[np.ndarray, 'b m'], valid: np.ndarray) -> Tokens:
  """Ids with their places, as the language model reads them."""
  position = jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :, None]
  return Tokens(values=jnp.asarray(ids), position=position, valid=jnp.asarray(valid))


def digit_tokens(images: UInt8[np.ndarray, 'b y x 1']) -> Tokens:
  """Digits of 0 to 16 as three equal colours in about [-1, 1]."""
  colours = jnp.repeat(jnp.asarray(images, jnp.float32) / 8 - 1, 3, axis=-1)
  return pixel_tokens(colours)


def linear_accuracy(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]) -> float:
  """In %, of least squares from the pixels to the classes: what the images tell without any model."""
  pixels = [
    np.c_[part['image'].reshape(len(part['image']), -1) / 16, np.ones(len(part['image']))] for part in (train, test)
  ]
  weights = np.linalg.lstsq(pixels[0], np.eye(10)[train['label']], rcond=None)[0]
  return 100 * float(np.mean((pixels[1] @ weights).argmax(1) == test['label']))


def largest_difference(ours: Any, theirs: np.ndarray) -> float:
  """Over the largest magnitude."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
