"""What only an accelerator can show, in one run of about six minutes: `make gpu`.

First the equalities, `pytest -m gpu`; then what a training step costs to compile and to run, beside Hugging Face's on
the same card where torch and transformers are installed. The table comes last. `--size small` is a rehearsal on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from perceiver_lib.attention.attend import attend, reference_attend
from perceiver_lib.attention.products import full_float32
from perceiver_lib.experiments.bench.steps import LEARNING_RATE, random_weights
from perceiver_lib.flops import count_flops
from perceiver_lib.modalities.byte_array import byte_array_tokens
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.losses import cross_entropy

CALLS = 10


def language(batch_size: int, small: bool) -> tuple[Any, Callable, Tokens]:
  batch_size, length = 1 if small else batch_size, 2048
  config = dataclasses.replace(PerceiverIOConfig.paper_language('bytes'), mixed_precision=True)
  if small:
    config = dataclasses.replace(config, num_latents=32, num_self_attends_per_block=2)
  ids = jnp.asarray(np.random.default_rng(0).integers(6, 262, (batch_size, length)), jnp.int32)
  tokens = Tokens(values=ids, position=jnp.arange(length, dtype=jnp.int32)[None, :, None])
  return (PerceiverIO, config), lambda model, tokens: cross_entropy(model(tokens), tokens.values), tokens


def million_bytes(small: bool) -> tuple[Any, Callable, Tokens]:
  num_bytes = 2**12 if small else 2**20
  values = np.random.default_rng(0).integers(0, 256, (1, num_bytes), np.uint8)
  config = PerceiverConfig.of_bytes(num_bytes)
  return (
    (Perceiver, config),
    lambda model, tokens: jnp.square(model(tokens)).mean(),
    byte_array_tokens(jnp.asarray(values)),
  )


def autoregressive(batch_size: int, small: bool) -> tuple[Any, Callable, Tokens]:
  context, width, layers = (256, 64, 2) if small else (8192, 1024, 12)
  config = PerceiverARConfig.of_bytes(
    num_channels=width, num_latents=context // 8, num_self_attends=layers, num_heads=width // 64
  )
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1 if small else batch_size, context)), jnp.int32)

  def loss(model: PerceiverAR, tokens: Tokens) -> jax.Array:
    return cross_entropy(model(tokens).values, tokens.values[:, -(context // 8) :])

  return (PerceiverAR, dataclasses.replace(config, mixed_precision=True)), loss, Tokens(values=ids)


def step_cost(model: tuple[Any, Any], loss: Callable, tokens: Tokens) -> dict[str, float]:
  """Of one training step with AdamW: seconds to trace and compile, milliseconds, gigabytes, and TFLOP/s."""
  graphdef, weights = random_weights(*model)
  optimizer = optax.adamw(LEARNING_RATE)
  gradient = jax.grad(lambda weights, tokens: loss(nnx.merge(graphdef, weights), tokens))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(weights, moments, tokens):
    updates, moments = optimizer.update(gradient(weights, tokens), moments, weights)
    return optax.apply_updates(weights, updates), moments

  operations = count_flops(gradient, weights, tokens)
  state = (weights, optimizer.init(weights))
  begin = time.perf_counter()
  program = step.lower(*state, tokens).compile()
  compile_seconds, seconds = time.perf_counter() - begin, []
  for _ in range(CALLS + 1):
    begin = time.perf_counter()
    state = jax.block_until_ready(program(*state, tokens))
    seconds.append(time.perf_counter() - begin)
  median = float(np.median(seconds[1:]))
  return {
    'compile s': compile_seconds,
    'step ms': 1e3 * median,
    'temporary GB': program.memory_analysis().temp_size_in_bytes / 1e9,
    'TFLOP/s': operations / median / 1e12,
  }


def hugging_face_cost(batch_size: int, compiled: bool) -> dict[str, float]:
  """The same language model's step in PyTorch: bfloat16 autocast, fused AdamW, no dropout."""
  import torch
  from transformers import PerceiverConfig as TheirConfig
  from transformers import PerceiverForMaskedLM

  model = PerceiverForMaskedLM(TheirConfig(attention_probs_dropout_prob=0.0)).cuda().train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
  forward = torch.compile(model) if compiled else model
  ids = torch.randint(6, 262, (batch_size, 2048), device='cuda')
  seconds = []
  for _ in range(CALLS + 2):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast('cuda', torch.bfloat16):
      loss = forward(inputs=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    torch.cuda.synchronize()
    seconds.append(time.perf_counter() - begin)
  return {'compile s': seconds[0], 'step ms': 1e3 * float(np.median(seconds[2:]))}


def attention_errors() -> dict[str, float]:
  """Dense and streamed attention in float32 over a float64 reference, with the fast default and in full float32."""
  random = np.random.default_rng(0)
  q, k, v = (jnp.asarray(random.normal(size=(1, 4, n, 64)), jnp.float32) for n in (128, 4096, 4096))
  with jax.default_device(jax.devices('cpu')[0]), jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(array), jnp.float64) for array in (q, k, v)]
    truth = np.asarray(reference_attend(*wide, jnp.ones((1, 128, 4096), bool)))

  def error(chunk_size: int | None) -> float:
    found = jax.jit(functools.partial(attend, chunk_size=chunk_size))(q, k, v)
    return float(np.abs(np.asarray(found) - truth).max() / np.abs(truth).max())

  errors = {f'{name}, default': error(size) for name, size in (('dense', None), ('streamed', 512))}
  with full_float32():
    return errors | {f'{name}, full': error(size) for name, size in (('dense', None), ('streamed', 512))}


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=('small', 'full'), default='full')
  small = parser.parse_args(arguments).size == 'small'
  equalities = subprocess.run([sys.executable, '-m', 'pytest', '-m', 'gpu', '-p', 'no:cacheprovider'], check=False)
  errors, rows = attention_errors(), {}
  for name, program in {
    'language 201M, batch 8': functools.partial(language, 8),
    'language 201M, batch 32': functools.partial(language, 32),
    '1,048,576 bytes': million_bytes,
    'Perceiver AR 8,192 / 1,024, batch 8': functools.partial(autoregressive, 8),
  }.items():
    rows[name] = step_cost(*program(small))
    jax.clear_caches()
  if not small:
    try:
      for batch_size in (8, 32):
        for compiled in (False, True):
          name = f'Hugging Face {"torch.compile" if compiled else "eager"}, batch {batch_size}'
          rows[name] = hugging_face_cost(batch_size, compiled)
    except ImportError as error:
      print(f'No row of Hugging Face: {error}.', file=sys.stderr)
  held = {0: 'held', 5: 'skipped: no accelerator'}.get(equalities.returncode, 'broken')
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}; equalities {held}')
  for name, value in errors.items():
    print(f'{name:40} {value:.1e} of the largest output')
  for name, row in rows.items():
    print(f'{name:40} ' + '  '.join(f'{key} {value:.4g}' for key, value in row.items()))
  return 0 if held != 'broken' else 1


if __name__ == '__main__':
  sys.exit(main())
