"""From a hub id, a folder or a file to a model, and from a model to a folder that transformers reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from perceiver_lib.files import replacing
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.perceiver_io_sizes import Mode
from perceiver_lib.parameters import abstract
from perceiver_lib.pretrained import deepmind, hugging_face, krasserm
from perceiver_lib.pretrained.files import Arrays, read_arrays
from perceiver_lib.pretrained.names import Layout
from perceiver_lib.training.checkpoints import CheckpointError
from perceiver_lib.training.weights import check_shapes, shapes, with_arrays

Config = PerceiverIOConfig | PerceiverARConfig

WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
"""What a folder and a repository of the hub are searched for, in this order."""
CONFIG_FILE = 'config.json'


class Release(NamedTuple):
  """Weights on the hub: `kind` says what the model does; the number of parameters is the published or derived one."""

  name: str
  kind: str
  parameters: str


RELEASED = (
  Release('deepmind/language-perceiver', 'masked language model, bytes', '201,108,230'),
  Release('deepmind/vision-perceiver-fourier', 'ImageNet classes, Fourier positions', '48,440,627'),
  Release('deepmind/vision-perceiver-learned', 'ImageNet classes, learned positions', '62,255,848'),
  Release('deepmind/vision-perceiver-conv', 'ImageNet classes, after a convolution', '48,646,522'),
  Release('deepmind/optical-flow-perceiver', 'optical flow', '41,057,134'),
  Release('deepmind/multimodal-perceiver', 'video, sound and label autoencoding', '19,858,855'),
  Release('krasserm/perceiver-io-mlm', 'the language model again', '201,108,230'),
  Release('krasserm/perceiver-io-img-clf', 'the Fourier model again', '48,440,627'),
  Release('krasserm/perceiver-io-optical-flow', 'the flow model again', '41,057,134'),
  Release('krasserm/perceiver-ar-clm-base', 'Perceiver AR, text in SentencePiece', '455M'),
  Release('krasserm/perceiver-ar-sam-giant-midi', 'Perceiver AR, piano music', '134M'),
)


def load_pretrained(
  source: str | os.PathLike, *, mode: Mode | None = None, config: Config | None = None
) -> PerceiverIO | PerceiverAR:
  """A model with released weights, in float32.

  Args:
    source: an id on Hugging Face's hub (`deepmind/language-perceiver`), a folder with a weight file and a
      `config.json`, or a file: safetensors, `pytorch_model.bin`, or one of DeepMind's original pickles.
    mode: which program a Perceiver IO is to agree with, see `perceiver_lib.pretrained`; None = 'deepmind', or the mode
      of a given config. A Perceiver AR has no modes.
    config: of a model of other sizes than the published ones, where no `config.json` tells them.

  Raises:
    FileNotFoundError: if there is no such file or folder, or the hub cannot be reached.
    CheckpointError: if the file is damaged, holds anything but arrays, or does not fit; no part of it is loaded then.
  """
  path, settings = locate(source)
  arrays = read_arrays(path)
  config, table = _described(path, settings, arrays, config)
  if isinstance(config, PerceiverARConfig):
    if mode is not None:
      raise ValueError(f'A Perceiver AR has no modes, its weights come from one program; got mode={mode!r}.')
    model = abstract(PerceiverAR, config)
  else:
    config = config if mode is None else config.in_mode(mode)
    model = abstract(PerceiverIO, config)
  names = table(config).names(shapes(model))
  _check(path, arrays, names, model, table(config).ignored)

  def array(ours: str) -> np.ndarray:
    theirs, layout = names[ours]
    return np.ascontiguousarray(layout.ours(arrays.take(theirs)))

  return with_arrays(model, array)


def _described(path: Path, settings: Mapping[str, Any] | None, arrays: Arrays, config: Config | None):
  """The config of a file, in DeepMind's mode where it is a Perceiver IO and not given, and the table of its source."""
  names, found = arrays.shapes, None
  try:
    if kind := hugging_face.kind_of_names(names, deepmind.MARKS):
      return config or hugging_face.released_config(kind), deepmind.table
    if any(name.startswith('backend_model.') for name in names):
      found, table = config or krasserm.config_of(settings['model_config']), krasserm.table
    elif kind := hugging_face.kind_of_names(names, hugging_face.MARKS):
      described = hugging_face.config_of(settings) if settings else hugging_face.released_config(kind)
      found, table = config or described, hugging_face.table
  except (AttributeError, KeyError, TypeError) as error:
    raise CheckpointError(
      f'{path} needs the {CONFIG_FILE} of its model beside it, or `config`; it is missing or lacks a part: {error!r}.'
    ) from None
  if found is not None:
    own_mode = config is not None or isinstance(found, PerceiverARConfig)
    return found if own_mode else found.in_mode('deepmind'), table
  raise CheckpointError(
    f'{path} holds no Perceiver of Hugging Face, DeepMind or krasserm: none of its {len(names)} arrays has one of '
    f'their names; the first is {min(names, default="missing")!r}.'
  )


def _check(
  path: Path, arrays: Arrays, names: Mapping[str, tuple[str, Layout]], model: nnx.Module, ignored: tuple[str, ...]
) -> None:
  # Zeros without memory tell what a layout makes of a shape.
  expected = {
    theirs: layout.theirs(np.broadcast_to(np.float32(0), shape)).shape
    for (theirs, layout), shape in zip(names.values(), shapes(model).values(), strict=True)
  }
  check_shapes(path, {name: shape for name, shape in arrays.shapes.items() if not name.endswith(ignored)}, expected)


def locate(source: str | os.PathLike) -> tuple[Path, dict[str, Any] | None]:
  """The weight file of a source, fetched if it is an id, and what the `config.json` beside it says, None = none."""
  path = Path(source).expanduser()
  if path.is_dir():
    folder = path
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
      raise FileNotFoundError(f'{folder} holds none of {", ".join(WEIGHT_FILES)}; name a weight file itself.')
  elif not path.is_file():
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(source)):
      raise FileNotFoundError(f'There is no weight file or folder {path}.')
    path = _fetched(str(source))
  beside = path.parent / CONFIG_FILE
  if not beside.is_file():
    return path, None
  try:
    return path, dict(json.loads(beside.read_text(encoding='utf-8')))
  except (TypeError, ValueError) as error:
    raise CheckpointError(f'{beside} is damaged: {error}. Fetch it again.') from None


def _fetched(name: str) -> Path:
  """The weight file of a repository of the hub, from its cache or whole from the network, with its `config.json`."""
  try:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
  except ImportError:
    raise FileNotFoundError(f'There is no folder {name}, and the hub needs: pip install huggingface-hub') from None
  try:
    hf_hub_download(name, CONFIG_FILE)
    for weights in WEIGHT_FILES:
      try:
        return Path(hf_hub_download(name, weights))
      except EntryNotFoundError as error:
        missing = error
    raise missing
  except (OSError, ValueError) as error:
    raise FileNotFoundError(
      f'{name} is no folder here and could not be fetched from the hub ({type(error).__name__}); connect to a network, '
      'or name a folder or a file with its weights.'
    ) from error


def save_pretrained(model: PerceiverIO | PerceiverAR, folder: str | os.PathLike) -> Path:
  """Writes `model.safetensors` and `config.json` under Hugging Face's names, as transformers does.

  Loading and saving again gives the same arrays to the bit, whatever the mode.

  Raises:
    ValueError: if transformers has no such model.
  """
  config = model.config
  if not isinstance(config, PerceiverIOConfig):
    raise ValueError('Hugging Face has Perceiver IO only; keep other models with training.weights.save_weights.')
  names = hugging_face.table(config).names(shapes(model))
  settings = hugging_face.settings_of(config, {theirs for theirs, _ in names.values()})
  state = {'.'.join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.split(model, nnx.RngState, ...)[2])}
  arrays = {
    theirs: np.ascontiguousarray(layout.theirs(np.asarray(state[ours][...])))
    for ours, (theirs, layout) in names.items()
  }
  if config.preprocessor is not None:
    arrays[hugging_face.COUNTED] = np.zeros((), np.int64)
  folder = Path(folder).expanduser()
  with replacing(folder / WEIGHT_FILES[0]) as aside:
    save_file(arrays, aside, metadata={'format': 'pt'})
  with replacing(folder / CONFIG_FILE) as aside:
    aside.write_text(json.dumps(settings, indent=2) + '\n', encoding='utf-8')
  return folder


def verify(source: str | os.PathLike) -> str:
  """What a source holds, in a few lines, after it was loaded whole: its file, size, hash, model and parameters.

  The hub's cache calls a large file by its SHA-256, which is then compared.

  Raises:
    CheckpointError: if the file is not the one that the hub has, does not fit, or holds a number that is not finite.
  """
  path, _ = locate(source)
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  named = path.resolve().name
  if re.fullmatch('[0-9a-f]{64}', named) and named != digest:
    raise CheckpointError(f'{path} has the SHA-256 {digest} where the hub has {named}; delete it and fetch it again.')
  model = load_pretrained(source)
  leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
  bad = next((path for path, leaf in leaves if not np.isfinite(np.asarray(leaf[...])).all()), None)
  if bad is not None:
    raise CheckpointError(f'{path} holds numbers that are not finite, in {".".join(map(str, bad))!r}.')
  parameters = sum(leaf.size for _, leaf in leaves)
  return (
    f'{path}\n  {path.stat().st_size:,} bytes, SHA-256 {digest}'
    f'{", as on the hub" if named == digest else ""}\n  {type(model).__name__}, {parameters:,} parameters, all finite'
  )
