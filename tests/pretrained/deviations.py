"""How far the modes of `perceiver_lib.pretrained` are apart, one deviation at a time: full size, random weights.

python -m tests.pretrained.deviations [KIND ...]
"""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np
from flax import nnx

import tests.conftest  # noqa: F401 -- programs that compile in no time
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.parameters import abstract
from perceiver_lib.pretrained import hugging_face
from perceiver_lib.training.weights import shapes, with_arrays
from tests.pretrained.cases import Inputs, answer, draw, relative_error

KINDS = ('language', 'fourier', 'learned', 'convolution', 'flow', 'multimodal')


def model_of(config: PerceiverIOConfig, seed: int = 0) -> PerceiverIO:
  """Every weight random, the same ones whatever the mode."""
  model = abstract(PerceiverIO, config)
  names, random = hugging_face.table(config.in_mode('deepmind')).names(shapes(model)), np.random.default_rng(seed)

  def array(ours: str) -> np.ndarray:
    theirs, layout = names[ours]
    shape = layout.theirs(np.broadcast_to(np.float32(0), shapes(model)[ours])).shape
    return layout.ours(draw(theirs, shape, random, small=False))

  return with_arrays(model, array)


def inputs_of(kind: str) -> Inputs:
  random = np.random.default_rng(1)

  def normal(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)

  if kind == 'language':
    return {'ids': random.integers(0, 262, (1, 2048)).astype(np.int32), 'valid': np.ones((1, 2048), bool)}
  if kind == 'flow':
    return {'frames': normal(1, 2, 368, 496, 27)}
  if kind == 'multimodal':
    points = {'image_points': random.choice(16 * 224 * 224, 128), 'audio_points': random.choice(1920, 128)}
    read_at = np.linspace(-1, 1, 1920, dtype=np.float32)[:, None]
    sources = {'image': normal(1, 16, 224, 224, 3), 'audio': normal(1, 30_720), 'label': normal(1, 700)}
    return {**sources, **points, 'audio_read_at': read_at}
  return {'image': normal(1, 224, 224, 3)}


def deviations(kind: str) -> dict[str, PerceiverIO]:
  """The model in DeepMind's mode, and with one thing after another as in Hugging Face's."""
  config = hugging_face.released_config(kind)
  theirs = config.in_mode('hugging_face')
  decoder = dataclasses.replace(
    theirs.decoder,
    cross_attend=dataclasses.replace(
      theirs.decoder.cross_attend, query_residual=config.decoder.cross_attend.query_residual
    ),
  )
  found = {
    '': model_of(config),
    'erf': model_of(dataclasses.replace(theirs, decoder=decoder, preprocessor=config.preprocessor)),
  }
  if kind == 'learned':
    layer = dataclasses.replace(config.decoder.cross_attend, query_residual=True)
    residual = dataclasses.replace(config.decoder, cross_attend=layer)
    found['residual'] = model_of(dataclasses.replace(config, decoder=residual))
  if kind == 'convolution':
    found['padding'] = model_of(dataclasses.replace(config, preprocessor=theirs.preprocessor))
    found['kernel'] = nnx.clone(found[''])
    kernel = found['kernel'].preprocessor.kernel
    kernel[...] = kernel[...].transpose(1, 0, 2, 3)
  return found | {'all': model_of(theirs)}


def main() -> None:
  for kind in sys.argv[1:] or KINDS:
    inputs, outputs = inputs_of(kind), {}
    run = jax.jit(lambda model, kind=kind, inputs=inputs: answer(model, kind, inputs))
    for what, model in deviations(kind).items():
      found = run(model)
      outputs[what] = {part: np.asarray(array) for part, array in found.items() if part != 'layers'}
      if what:
        errors = [f'{part} {relative_error(array, outputs[""][part]):.1e}' for part, array in outputs[what].items()]
        print(kind, what, *errors, flush=True)


if __name__ == '__main__':
  main()
