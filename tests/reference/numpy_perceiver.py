"""The maths of the Perceiver family in plain NumPy, float64: what the library is tested against.

Written from the papers (Perceiver, arXiv 2103.03206 v2; Perceiver IO, arXiv 2107.14795 v3) and from the semantics of
google-deepmind/deepmind-research `perceiver/` and google-research/perceiver-ar, without looking at `perceiver_lib`.
Slow on purpose: heads are a Python loop and masks are full matrices.

Parameters are a flat dict from dotted path to array: `kernel` [in, out] and `bias` [out] of a linear layer, `scale` and
`bias` of a layer norm, and below a layer

    cross-attend   query_norm  input_norm  attention.{query,key,value,output}  mlp_norm  mlp.{up,down}
    self-attend    norm                    attention.{query,key,value,output}  mlp_norm  mlp.{up,down}
    models         encoder.latents [n, d]  encoder.cross_attends.{i}  encoder.latent_projection (Perceiver AR)
                   processor.layers.{i}    decoder.cross_attend  decoder.output_norm (Perceiver AR)  decoder.output
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Parameters = Mapping[str, np.ndarray]
Rotation = Callable[[np.ndarray, np.ndarray], np.ndarray]


def at(parameters: Parameters, path: str) -> Parameters:
  """The parameters below a dotted path."""
  below = {name[len(path) + 1 :]: array for name, array in parameters.items() if name.startswith(path + '.')}
  if not below:
    raise KeyError(f'No parameter below {path!r}; there are {sorted(parameters)}.')
  return below


def linear(parameters: Parameters, x: np.ndarray) -> np.ndarray:
  y = x.astype(np.float64) @ parameters['kernel'].astype(np.float64)
  return y + parameters['bias'] if 'bias' in parameters else y


def layer_norm(parameters: Parameters, x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
  x = x.astype(np.float64)
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * parameters['scale'] + parameters['bias']


def gelu_tanh(x: np.ndarray) -> np.ndarray:
  return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
  return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def squared_relu(x: np.ndarray) -> np.ndarray:
  return np.maximum(x, 0.0) ** 2


ACTIVATIONS = {'gelu_tanh': gelu_tanh, 'gelu_erf': gelu_erf, 'squared_relu': squared_relu}


def mlp(parameters: Parameters, x: np.ndarray, activation: str) -> np.ndarray:
  return linear(at(parameters, 'down'), ACTIVATIONS[activation](linear(at(parameters, 'up'), x)))


def rule(
  num_queries: int,
  num_keys: int,
  query_time: np.ndarray | None = None,
  key_time: np.ndarray | None = None,
  key_valid: np.ndarray | None = None,
) -> np.ndarray:
  """Full mask [b or 1, i, j]: a query may attend to a key iff the key is valid and no later than the query."""
  mask = np.ones((1, num_queries, num_keys), bool)
  if key_time is not None:
    mask = mask & (key_time[:, None, :] <= query_time[:, :, None])
  if key_valid is not None:
    mask = mask & key_valid[:, None, :]
  return mask


def masked_softmax(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Softmax over the allowed keys of each row; a row with no allowed key is all zero."""
  weights = np.zeros_like(logits)
  mask = np.broadcast_to(mask, logits.shape)
  for row in np.ndindex(*logits.shape[:-1]):
    allowed = np.flatnonzero(mask[row])
    if allowed.size:
      exponentials = np.exp(logits[row][allowed] - logits[row][allowed].max())
      weights[row][allowed] = exponentials / exponentials.sum()
  return weights


def multi_head_attention(
  parameters: Parameters,
  query_inputs: np.ndarray,
  key_inputs: np.ndarray,
  *,
  num_heads: int,
  mask: np.ndarray,
  rotate: Rotation | None = None,
  query_position: np.ndarray | None = None,
  key_position: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Output [b, i, out], scaled logits before the mask [b, h, i, j] and weights [b, h, i, j].

  The widths of query/key, value and output are those of the kernels. Fully masked rows are zero before the output
  projection, so that they come out as its bias.
  """
  query, key, value = (
    np.split(linear(at(parameters, name), x), num_heads, axis=-1)
    for name, x in (('query', query_inputs), ('key', key_inputs), ('value', key_inputs))
  )
  outputs, all_logits, all_weights = [], [], []
  for q, k, v in zip(query, key, value, strict=True):
    if rotate is not None:
      q, k = rotate(q, query_position), rotate(k, key_position)
    logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    weights = masked_softmax(logits, mask)
    outputs.append(weights @ v)
    all_logits.append(logits)
    all_weights.append(weights)
  output = linear(at(parameters, 'output'), np.concatenate(outputs, axis=-1))
  return output, np.stack(all_logits, axis=1), np.stack(all_weights, axis=1)


def cross_attend(
  parameters: Parameters,
  queries: np.ndarray,
  inputs: np.ndarray,
  *,
  num_heads: int,
  mask: np.ndarray,
  activation: str = 'gelu_tanh',
  query_residual: bool = True,
  keys_under_query_norm: np.ndarray | None = None,
  rotate: Rotation | None = None,
  query_position: np.ndarray | None = None,
  key_position: np.ndarray | None = None,
) -> np.ndarray:
  """X = Attn(LN(q), LN(kv)) [+ q]; X + MLP(LN(X)) (Perceiver IO, appendix E.1).

  Args:
    keys_under_query_norm: [b, m] bool, the keys that pass through the queries' layer norm instead of the inputs'
      (krasserm/perceiver-io does so with the latent part of Perceiver AR's keys); None = no key does.
  """
  keys = layer_norm(at(parameters, 'input_norm'), inputs)
  if keys_under_query_norm is not None:
    keys = np.where(keys_under_query_norm[..., None], layer_norm(at(parameters, 'query_norm'), inputs), keys)
  x, _, _ = multi_head_attention(
    at(parameters, 'attention'),
    layer_norm(at(parameters, 'query_norm'), queries),
    keys,
    num_heads=num_heads,
    mask=mask,
    rotate=rotate,
    query_position=query_position,
    key_position=key_position,
  )
  if query_residual:
    x = x + queries
  return x + mlp(at(parameters, 'mlp'), layer_norm(at(parameters, 'mlp_norm'), x), activation)


def self_attend(
  parameters: Parameters,
  x: np.ndarray,
  *,
  num_heads: int,
  mask: np.ndarray,
  activation: str = 'gelu_tanh',
  rotate: Rotation | None = None,
  position: np.ndarray | None = None,
) -> np.ndarray:
  normed = layer_norm(at(parameters, 'norm'), x)
  attended, _, _ = multi_head_attention(
    at(parameters, 'attention'),
    normed,
    normed,
    num_heads=num_heads,
    mask=mask,
    rotate=rotate,
    query_position=position,
    key_position=position,
  )
  x = x + attended
  return x + mlp(at(parameters, 'mlp'), layer_norm(at(parameters, 'mlp_norm'), x), activation)


def process(parameters: Parameters, latents: np.ndarray, layers: Sequence[int], **settings) -> np.ndarray:
  """Applies `processor.layers.{i}` for each i of `layers`; an index that returns is a shared layer."""
  for layer in layers:
    latents = self_attend(at(parameters, f'processor.layers.{layer}'), latents, **settings)
  return latents


def initial_latents(parameters: Parameters, batch_size: int) -> np.ndarray:
  return np.repeat(parameters['encoder.latents'][None].astype(np.float64), batch_size, axis=0)


def perceiver(
  parameters: Parameters,
  inputs: np.ndarray,
  *,
  reads: Sequence[tuple[int, Sequence[int]]],
  num_cross_heads: int,
  num_self_heads: int,
  input_valid: np.ndarray | None = None,
  activation: str = 'gelu_tanh',
) -> tuple[np.ndarray, np.ndarray]:
  """Perceiver (arXiv 2103.03206): inputs are read again between blocks; mean over the latents, then one linear layer.

  Args:
    reads: for each read the index of its cross-attend and those of the self-attends that follow. The paper's shared
      model with eight reads is [(0, block), (1, block), (1, block), ...]: only the first cross-attend has weights of
      its own.

  Returns:
    latents [b, n, d] and logits [b, e].
  """
  latents = initial_latents(parameters, len(inputs))
  mask = rule(latents.shape[1], inputs.shape[1], key_valid=input_valid)
  for cross, layers in reads:
    layer = at(parameters, f'encoder.cross_attends.{cross}')
    latents = cross_attend(layer, latents, inputs, num_heads=num_cross_heads, mask=mask, activation=activation)
    visible = rule(latents.shape[1], latents.shape[1])
    latents = process(parameters, latents, layers, num_heads=num_self_heads, mask=visible, activation=activation)
  return latents, linear(at(parameters, 'decoder.output'), latents.mean(axis=1))


def encode(
  parameters: Parameters,
  inputs: np.ndarray,
  *,
  layers: Sequence[int],
  num_cross_heads: int,
  num_self_heads: int,
  input_valid: np.ndarray | None = None,
  input_time: np.ndarray | None = None,
  num_timesteps: int = 1,
  timestep_embedding: np.ndarray | None = None,
  activation: str = 'gelu_tanh',
) -> tuple[np.ndarray, np.ndarray | None]:
  """Encoder and processor of Perceiver IO (no time) and of the unified model (the same latents at every timestep).

  A timestep's embedding [t, d] is added to its latents after the read, so that the latents of all timesteps ask the
  same question.

  Returns:
    latents [b, t * s, d], timestep-major, and their times [b, t * s], or None without input times.
  """
  batch_size, num_latents = len(inputs), len(parameters['encoder.latents'])
  latents = np.tile(initial_latents(parameters, batch_size), (1, num_timesteps, 1))
  latent_time = None
  if input_time is not None:
    latent_time = np.repeat(np.repeat(np.arange(num_timesteps), num_latents)[None], batch_size, axis=0)
  mask = rule(latents.shape[1], inputs.shape[1], latent_time, input_time, input_valid)
  first_read = at(parameters, 'encoder.cross_attends.0')
  latents = cross_attend(first_read, latents, inputs, num_heads=num_cross_heads, mask=mask, activation=activation)
  if timestep_embedding is not None:
    latents = latents + np.repeat(timestep_embedding, num_latents, axis=0)[None]
  mask = rule(latents.shape[1], latents.shape[1], latent_time, latent_time)
  latents = process(parameters, latents, layers, num_heads=num_self_heads, mask=mask, activation=activation)
  return latents, latent_time


def decode(
  parameters: Parameters,
  latents: np.ndarray,
  queries: np.ndarray,
  *,
  num_heads: int,
  query_residual: bool,
  latent_time: np.ndarray | None = None,
  query_time: np.ndarray | None = None,
  activation: str = 'gelu_tanh',
) -> np.ndarray:
  """Perceiver IO's decoder: output queries [b, o, f] cross-attend to the latents, then one linear layer: [b, o, e]."""
  mask = rule(queries.shape[1], latents.shape[1], query_time, latent_time)
  layer = at(parameters, 'decoder.cross_attend')
  settings = {'num_heads': num_heads, 'activation': activation, 'query_residual': query_residual}
  return linear(at(parameters, 'decoder.output'), cross_attend(layer, queries, latents, mask=mask, **settings))


def last_valid(valid: np.ndarray, num_latents: int) -> np.ndarray:
  """Indices [b, n] of the last `num_latents` valid inputs in order; -1, on the left, where there are fewer."""
  indices = np.full((len(valid), num_latents), -1)
  for row, row_valid in enumerate(valid):
    last = np.flatnonzero(row_valid)[-num_latents:]
    indices[row, num_latents - len(last) :] = last
  return indices


def perceiver_ar(
  parameters: Parameters,
  inputs: np.ndarray,
  valid: np.ndarray,
  *,
  num_latents: int,
  layers: Sequence[int],
  num_cross_heads: int,
  num_self_heads: int,
  rotate: Rotation | None = None,
  position: np.ndarray | None = None,
  latent_keys: str = 'input_norm',
  activation: str = 'squared_relu',
) -> tuple[np.ndarray, np.ndarray]:
  """Perceiver AR on embedded inputs [b, m, c]: latent n sits on the n-th of the last valid inputs.

  Args:
    position: [b, m], rotates queries and keys of all layers.
    latent_keys: layer norm of the keys that are latents too: 'input_norm' (google-research/perceiver-ar: one for all
      keys) or 'query_norm' (krasserm/perceiver-io).

  Returns:
    logits [b, n, e] and indices [b, n] of the latents' inputs; rows whose index is -1 hold nothing.
  """
  indices = last_valid(valid, num_latents)
  latent_valid, rows = indices >= 0, np.arange(len(inputs))[:, None]
  inputs = np.where(valid[..., None], inputs, 0.0)
  latents = np.where(latent_valid[..., None], inputs[rows, indices], 0.0)
  if any(name.startswith('encoder.latent_projection.') for name in parameters):
    latents = linear(at(parameters, 'encoder.latent_projection'), latents)
  is_latent = np.zeros(valid.shape, bool)
  for row in range(len(inputs)):
    is_latent[row, indices[row, latent_valid[row]]] = True
  time = np.repeat(np.arange(inputs.shape[1])[None], len(inputs), axis=0)
  latent_position = None if position is None else np.where(latent_valid, position[rows, indices], 0)
  x = cross_attend(
    at(parameters, 'encoder.cross_attends.0'),
    latents,
    inputs,
    num_heads=num_cross_heads,
    mask=rule(num_latents, inputs.shape[1], indices, time, valid),
    activation=activation,
    keys_under_query_norm=is_latent if latent_keys == 'query_norm' else None,
    rotate=rotate,
    query_position=latent_position,
    key_position=position,
  )
  mask = rule(num_latents, num_latents, indices, indices, latent_valid)
  settings = {'num_heads': num_self_heads, 'activation': activation, 'rotate': rotate, 'position': latent_position}
  x = process(parameters, x, layers, mask=mask, **settings)
  return linear(at(parameters, 'decoder.output'), layer_norm(at(parameters, 'decoder.output_norm'), x)), indices


def position_grid(shape: Sequence[int], grid: str = 'endpoints') -> np.ndarray:
  """Coordinates [prod(shape), axes] of a row-major grid in [-1, 1].

  'endpoints': linspace(-1, 1, n), DeepMind's full grid. 'subsampled': -1 + 2 i / n, DeepMind's sub-sampled queries.
  """
  axes = {
    'endpoints': [np.linspace(-1.0, 1.0, n) for n in shape],
    'subsampled': [-1.0 + 2.0 * np.arange(n) / n for n in shape],
  }[grid]
  return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, len(shape))


def fourier_features(position: np.ndarray, num_bands: int, resolution: Sequence[int]) -> np.ndarray:
  """[..., axes] to [..., axes (2 bands + 1)]: the position, sin of all axes, cos of all axes; bands fastest."""
  sines, cosines = [], []
  for axis, size in enumerate(resolution):
    angles = math.pi * position[..., axis, None] * np.linspace(1.0, size / 2.0, num_bands)
    sines.append(np.sin(angles))
    cosines.append(np.cos(angles))
  return np.concatenate([position, *sines, *cosines], axis=-1)


def rotary(
  x: np.ndarray,
  position: np.ndarray,
  *,
  fraction: float = 1.0,
  layout: str = 'interleaved',
  series: str = 'standard',
  max_wavelength: float = 10_000.0,
) -> np.ndarray:
  """Rotates pairs of the first `fraction` of the channels of x [b, i, k] by position [b, i] over a wavelength series.

  Args:
    layout: 'interleaved' pairs channels (0, 1), (2, 3), ...; 'half_split' pairs (0, r / 2), (1, r / 2 + 1), ...
    series: pair p turns by position / max_wavelength ** e_p. 'standard': e_p = 2 p / r. 'endpoint': e_p runs evenly
      from 0 to 1 inclusive, as in google-research/perceiver-ar.
  """
  x = x.astype(np.float64).copy()
  num_rotated = int(x.shape[-1] * fraction / 2) * 2
  num_pairs = num_rotated // 2
  for pair in range(num_pairs):
    exponent = {'standard': pair / num_pairs, 'endpoint': pair / max(num_pairs - 1, 1)}[series]
    first, second = {'interleaved': (2 * pair, 2 * pair + 1), 'half_split': (pair, num_pairs + pair)}[layout]
    angle = position / max_wavelength**exponent
    a, b = x[..., first].copy(), x[..., second].copy()
    x[..., first] = a * np.cos(angle) - b * np.sin(angle)
    x[..., second] = b * np.cos(angle) + a * np.sin(angle)
  return x
