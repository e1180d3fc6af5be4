"""Writes golden/*.npz: small inputs, parameters and outputs of the NumPy maths. Regenerates bit for bit.

    python -m tests.reference.make_golden

Sizes are distinct primes, times the number of heads where a width is split. Each file holds `input/...`,
`parameter/<path>` and `output/...`; inputs and parameters are exact in float32, outputs are float64 rounded to ten
decimals, so that another machine's last bit does not show.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.reference import numpy_perceiver as reference

GOLDEN = Path(__file__).parent / 'golden'
Case = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], Mapping[str, np.ndarray]]

BATCH, INPUTS, LATENTS, QUERIES, STEPS = 2, 13, 5, 7, 3
INPUT_CHANNELS, LATENT_CHANNELS, QUERY_CHANNELS, OUTPUTS = 11, 2 * 7, 17, 19
QK_CHANNELS, V_CHANNELS, HEADS = 2 * 6, 2 * 5, 2  # rotary needs an even width in each head


class Draw:
  """Normal random arrays on a grid of 1/32: exact in float32, and small when compressed."""

  def __init__(self, seed: int):
    self._generator = np.random.default_rng(seed)

  def array(self, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.round(32 * scale * self._generator.standard_normal(shape)) / 32).astype(np.float32)

  def linear(self, fan_in: int, fan_out: int) -> dict[str, np.ndarray]:
    return {'kernel': self.array(fan_in, fan_out, scale=fan_in**-0.5), 'bias': self.array(fan_out, scale=0.3)}

  def norm(self, channels: int) -> dict[str, np.ndarray]:
    return {'scale': np.float32(1.0) + self.array(channels, scale=0.3), 'bias': self.array(channels, scale=0.3)}

  def attention(self, query: int, key: int, output: int) -> dict[str, np.ndarray]:
    sizes = {
      'query': (query, QK_CHANNELS),
      'key': (key, QK_CHANNELS),
      'value': (key, V_CHANNELS),
      'output': (V_CHANNELS, output),
    }
    return under({name: self.linear(*size) for name, size in sizes.items()})

  def layer(self, query: int, key: int, widening: int, *, cross: bool) -> dict[str, np.ndarray]:
    norms = {'query_norm': query, 'input_norm': key} if cross else {'norm': query}
    return under(
      {name: self.norm(size) for name, size in norms.items()}
      | {'attention': self.attention(query, key, query), 'mlp_norm': self.norm(query)}
      | {'mlp.up': self.linear(query, widening * query), 'mlp.down': self.linear(widening * query, query)}
    )


def under(trees: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Joins the paths of named trees into one flat tree."""
  return {f'{path}.{name}': array for path, tree in trees.items() for name, array in tree.items()}


def positions() -> Case:
  shape, bands, resolution = (3, 5), 7, (11, 13)
  outputs = {}
  for grid in ('endpoints', 'subsampled'):
    outputs[f'{grid}_grid'] = reference.position_grid(shape, grid)
    outputs[f'{grid}_fourier'] = reference.fourier_features(outputs[f'{grid}_grid'], bands, resolution)
  return {'shape': np.array(shape), 'num_bands': np.array(bands), 'resolution': np.array(resolution)}, {}, outputs


def rotary() -> Case:
  draw = Draw(2)
  x, position = draw.array(BATCH, QUERIES, 10), np.arange(BATCH * QUERIES).reshape(BATCH, QUERIES) * 3
  outputs = {
    f'{layout}_{series}_{name}': reference.rotary(
      x, position, layout=layout, series=series, fraction=fraction, max_wavelength=8192.0
    )
    for layout in ('interleaved', 'half_split')
    for series in ('standard', 'endpoint')
    for name, fraction in (('whole', 1.0), ('part', 0.6))
  }
  return {'x': x, 'position': position}, {}, outputs


def attention() -> Case:
  """Row 0 of example 0 precedes every key and example 1 has one valid key: masked rows are exactly zero."""
  draw = Draw(3)
  inputs = {'query': draw.array(BATCH, QUERIES, QUERY_CHANNELS), 'key': draw.array(BATCH, INPUTS, INPUT_CHANNELS)}
  inputs['query_time'] = np.array([[-1, 0, 1, 2, 4, 1, 3], [0, 0, 1, 1, 2, 5, 7]], np.int32)
  inputs['key_time'] = np.array([np.arange(INPUTS) // 3, (np.arange(INPUTS) * 5) % 7], np.int32)
  inputs['key_valid'] = np.array([np.arange(INPUTS) != 6, np.arange(INPUTS) == 2])
  parameters = draw.attention(QUERY_CHANNELS, INPUT_CHANNELS, OUTPUTS)
  mask = reference.rule(QUERIES, INPUTS, inputs['query_time'], inputs['key_time'], inputs['key_valid'])
  output, logits, weights = reference.multi_head_attention(
    parameters, inputs['query'], inputs['key'], num_heads=HEADS, mask=mask
  )
  return inputs, parameters, {'mask': mask, 'output': output, 'logits': logits, 'weights': weights}


def layers() -> Case:
  """Both layers with each activation, and the cross-attend with and without its query residual."""
  draw = Draw(5)
  inputs = {'query': draw.array(BATCH, QUERIES, QUERY_CHANNELS), 'key': draw.array(BATCH, INPUTS, INPUT_CHANNELS)}
  inputs['key_valid'] = np.arange(INPUTS)[None] < np.array([[INPUTS], [5]])
  parameters = under(
    {
      'cross_attend': draw.layer(QUERY_CHANNELS, INPUT_CHANNELS, 1, cross=True),
      'self_attend': draw.layer(QUERY_CHANNELS, QUERY_CHANNELS, 3, cross=False),
    }
  )
  mask, outputs = reference.rule(QUERIES, INPUTS, key_valid=inputs['key_valid']), {}
  for activation in reference.ACTIVATIONS:
    settings = {'num_heads': HEADS, 'activation': activation}
    for name, residual in (('cross_attend', True), ('cross_attend_without_residual', False)):
      outputs[f'{name}_{activation}'] = reference.cross_attend(
        reference.at(parameters, 'cross_attend'),
        inputs['query'],
        inputs['key'],
        mask=mask,
        query_residual=residual,
        **settings,
      )
    outputs[f'self_attend_{activation}'] = reference.self_attend(
      reference.at(parameters, 'self_attend'), inputs['query'], mask=reference.rule(QUERIES, QUERIES), **settings
    )
  return inputs, parameters, outputs


def encoder_parameters(draw: Draw, num_reads: int, num_layers: int) -> dict[str, np.ndarray]:
  trees = {
    f'encoder.cross_attends.{i}': draw.layer(LATENT_CHANNELS, INPUT_CHANNELS, 1, cross=True) for i in range(num_reads)
  }
  for i in range(num_layers):
    trees[f'processor.layers.{i}'] = draw.layer(LATENT_CHANNELS, LATENT_CHANNELS, 1, cross=False)
  return {'encoder.latents': draw.array(LATENTS, LATENT_CHANNELS)} | under(trees)


def perceiver() -> Case:
  """Three reads: the first cross-attend has weights of its own, the others share; one block of two shared layers."""
  draw = Draw(7)
  inputs = {'inputs': draw.array(BATCH, INPUTS, INPUT_CHANNELS)}
  inputs['valid'] = np.arange(INPUTS)[None] < np.array([[INPUTS], [7]])
  parameters = encoder_parameters(draw, 2, 2) | under({'decoder.output': draw.linear(LATENT_CHANNELS, OUTPUTS)})
  latents, logits = reference.perceiver(
    parameters,
    inputs['inputs'],
    reads=[(0, (0, 1)), (1, (0, 1)), (1, (0, 1))],
    num_cross_heads=1,
    num_self_heads=HEADS,
    input_valid=inputs['valid'],
  )
  return inputs, parameters, {'latents': latents, 'logits': logits}


def decoder_parameters(draw: Draw) -> dict[str, np.ndarray]:
  layer = draw.layer(QUERY_CHANNELS, LATENT_CHANNELS, 1, cross=True)
  return under({'decoder.cross_attend': layer, 'decoder.output': draw.linear(QUERY_CHANNELS, OUTPUTS)})


def perceiver_io() -> Case:
  """Two blocks of the same two layers; output queries with and without their residual."""
  draw = Draw(11)
  inputs = {
    'inputs': draw.array(BATCH, INPUTS, INPUT_CHANNELS),
    'valid': np.arange(INPUTS)[None] < np.array([[INPUTS], [7]]),
    'queries': draw.array(BATCH, QUERIES, QUERY_CHANNELS),
  }
  parameters = encoder_parameters(draw, 1, 2) | decoder_parameters(draw)
  latents, _ = reference.encode(
    parameters,
    inputs['inputs'],
    layers=(0, 1, 0, 1),
    num_cross_heads=1,
    num_self_heads=HEADS,
    input_valid=inputs['valid'],
  )
  decode = functools.partial(reference.decode, parameters, latents, inputs['queries'], num_heads=HEADS)
  outputs = {'with_residual': decode(query_residual=True), 'without_residual': decode(query_residual=False)}
  return inputs, parameters, {'latents': latents} | outputs


def perceiver_ar() -> Case:
  """Left padding, right padding and fewer valid inputs than latents; rotary on half of each head, endpoint series."""
  draw = Draw(13)
  width = LATENT_CHANNELS
  index = np.arange(INPUTS)
  inputs = {
    'inputs': draw.array(3, INPUTS, width),
    'valid': np.stack([index >= 2, index < 8, (index >= 3) & (index < 6)]),
    'position': np.stack([np.maximum(index - 2, 0), index, np.maximum(index - 3, 0)]),
  }
  parameters = under(
    {
      'encoder.latent_projection': draw.linear(width, width),
      'encoder.cross_attends.0': draw.layer(width, width, 3, cross=True),
      'processor.layers.0': draw.layer(width, width, 3, cross=False),
      'processor.layers.1': draw.layer(width, width, 3, cross=False),
      'decoder.output_norm': draw.norm(width),
      'decoder.output': draw.linear(width, OUTPUTS),
    }
  )
  outputs = {}
  for name, rotation in (
    ('standard', {'max_wavelength': 10_000.0, 'fraction': 0.7}),
    ('endpoint', {'max_wavelength': 8192.0, 'fraction': 1.0, 'series': 'endpoint'}),
  ):
    outputs[f'{name}_logits'], outputs['indices'] = reference.perceiver_ar(
      parameters,
      inputs['inputs'],
      inputs['valid'],
      num_latents=LATENTS,
      layers=(0, 1),
      num_cross_heads=1,
      num_self_heads=HEADS,
      rotate=functools.partial(reference.rotary, **rotation),
      position=inputs['position'],
    )
  return inputs, parameters, outputs


def unified() -> Case:
  """Inputs in any order over three timesteps, the same five latents at each, queries that each know one timestep."""
  draw = Draw(17)
  inputs = {
    'inputs': draw.array(BATCH, INPUTS, INPUT_CHANNELS),
    'time': np.array([np.arange(INPUTS) * 5 % STEPS, np.arange(INPUTS) // 5], np.int32),
    'valid': np.arange(INPUTS)[None] != np.array([[4], [0]]),
    'queries': draw.array(BATCH, QUERIES, QUERY_CHANNELS),
    'query_time': np.array([[0, 1, 2, 0, 1, 2, 2], [2, 1, 0, 0, 0, 1, 1]], np.int32),
    'timestep_embedding': draw.array(STEPS, LATENT_CHANNELS, scale=0.5),
  }
  parameters = encoder_parameters(draw, 1, 2) | decoder_parameters(draw)
  latents, latent_time = reference.encode(
    parameters,
    inputs['inputs'],
    layers=(0, 1),
    num_cross_heads=1,
    num_self_heads=HEADS,
    input_valid=inputs['valid'],
    input_time=inputs['time'],
    num_timesteps=STEPS,
    timestep_embedding=inputs['timestep_embedding'],
  )
  outputs = reference.decode(
    parameters,
    latents,
    inputs['queries'],
    num_heads=HEADS,
    query_residual=True,
    latent_time=latent_time,
    query_time=inputs['query_time'],
  )
  return inputs, parameters, {'latents': latents, 'latent_time': latent_time, 'outputs': outputs}


CASES: dict[str, Callable[[], Case]] = {
  case.__name__: case for case in (positions, rotary, attention, layers, perceiver, perceiver_io, perceiver_ar, unified)
}


def arrays(name: str) -> dict[str, np.ndarray]:
  """The content of golden/{name}.npz, computed afresh."""
  flat = {}
  for kind, tree in zip(('input', 'parameter', 'output'), CASES[name](), strict=True):
    flat |= {f'{kind}/{path}': np.asarray(array) for path, array in tree.items()}
  # Adding 0.0 turns a rounded -0.0 into 0.0.
  return {k: np.round(a, 10) + 0.0 if k.startswith('output/') and a.dtype == np.float64 else a for k, a in flat.items()}


def load(name: str) -> Case:
  """Inputs, parameters and outputs of a committed golden file, as dicts of arrays."""
  trees: dict[str, dict[str, np.ndarray]] = {'input': {}, 'parameter': {}, 'output': {}}
  with np.load(GOLDEN / f'{name}.npz', allow_pickle=False) as stored:
    for key in stored.files:
      kind, path = key.split('/', 1)
      trees[kind][path] = stored[key]
  return trees['input'], trees['parameter'], trees['output']


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  for name in CASES:
    np.savez_compressed(GOLDEN / f'{name}.npz', allow_pickle=False, **arrays(name))
    print(f'{name}: {(GOLDEN / f"{name}.npz").stat().st_size:,} bytes')
