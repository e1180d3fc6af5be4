"""Perceiver IO against Hugging Face's PyTorch port at published sizes, in turn on the same cores.

    pip install torch transformers                                  # a CPU build will do
    python -m perceiver_lib.experiments.against_hugging_face language flow --rounds 5

Both sides hold random weights of the same shapes: time and memory do not depend on their values. Each side is a process
of its own that answers "run" with seconds, so the two never compute at once and drift of the machine hits both. Hugging
Face runs without its default dropout, as ours does.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

LENGTH = 2_048
FLOW_SHAPE = (368, 496)
CASES = {
  'language': 'language model, 201,108,230 parameters, batch 1, 2,048 bytes, float32: forward',
  'language-train': 'the same: one training step with AdamW',
  'flow': 'optical flow, 41,057,134 parameters, one pair of 368 x 496, float32: forward',
}


def ours(case: str) -> Callable[[], None]:
  """One call of the returned function is one forward pass or training step of this library."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from flax import nnx

  from perceiver_lib.losses import cross_entropy
  from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
  from perceiver_lib.positions import grid
  from perceiver_lib.tokens import Tokens

  config = PerceiverIOConfig.paper_flow('large') if case == 'flow' else PerceiverIOConfig.paper_language('bytes')
  graphdef, shapes = nnx.split(nnx.eval_shape(lambda: PerceiverIO(config, rngs=nnx.Rngs(0))))
  random = np.random.default_rng(0)
  weights = jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape).astype(np.float32) * 0.02), shapes)
  if case == 'flow':
    values = jnp.asarray(random.uniform(-1, 1, (1, FLOW_SHAPE[0] * FLOW_SHAPE[1], 54)), jnp.float32)
    tokens = Tokens(values=values, position=jnp.asarray(grid(FLOW_SHAPE))[None])
    decode_chunk_size = values.shape[1] // 8
  else:
    ids = jnp.asarray(random.integers(6, 262, (1, LENGTH)), jnp.int32)
    tokens = Tokens(values=ids, position=jnp.arange(LENGTH, dtype=jnp.int32)[None, :, None])
    decode_chunk_size = None

  def forward(weights, tokens):
    return nnx.merge(graphdef, weights)(tokens, decode_chunk_size=decode_chunk_size)

  if case != 'language-train':
    compiled = jax.jit(forward).lower(weights, tokens).compile()
    return lambda: compiled(weights, tokens).block_until_ready()
  optimizer = optax.adamw(1e-4)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(weights, moments):
    gradients = jax.grad(lambda weights: cross_entropy(forward(weights, tokens), tokens.values))(weights)
    updates, moments = optimizer.update(gradients, moments, weights)
    return optax.apply_updates(weights, updates), moments

  state = [weights, optimizer.init(weights)]

  def train() -> None:
    state[:] = step(*state)
    jax.block_until_ready(state)

  return train


def hugging_face(case: str) -> Callable[[], None]:
  """The same of transformers' `modeling_perceiver.py`."""
  import torch
  from transformers import PerceiverConfig, PerceiverForMaskedLM, PerceiverForOpticalFlow

  torch.manual_seed(0)
  if case == 'flow':
    config = PerceiverConfig(
      num_latents=2_048, d_latents=512, d_model=322, num_blocks=1, num_self_attends_per_block=24,
      num_self_attention_heads=16, num_cross_attention_heads=1, train_size=list(FLOW_SHAPE),
      attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = PerceiverForOpticalFlow(config).eval()
    inputs = torch.rand(1, 2, 27, *FLOW_SHAPE) * 2 - 1
  else:
    model = PerceiverForMaskedLM(PerceiverConfig(attention_probs_dropout_prob=0.0))
    inputs = torch.randint(6, 262, (1, LENGTH))
  if case != 'language-train':
    model = model.eval()

    def forward() -> None:
      with torch.no_grad():
        model(inputs=inputs)

    return forward
  model = model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

  def train() -> None:
    optimizer.zero_grad(set_to_none=True)
    model(inputs=inputs, labels=inputs).loss.backward()
    optimizer.step()

  return train


def work(side: str, case: str) -> None:
  """A worker: every line on standard input is one timed call; it answers with seconds and its peak memory."""
  call = {'ours': ours, 'hugging_face': hugging_face}[side](case)
  call()
  print(json.dumps({'ready': True}), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    unit = 2**30 if platform.system() == 'Darwin' else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({'seconds': seconds, 'peak_gigabytes': peak}), flush=True)


def compare(case: str, rounds: int) -> dict[str, object]:
  """Median seconds and peak GiB of both sides over interleaved rounds, and the median of the ratios ours / theirs."""
  command = [sys.executable, '-m', 'perceiver_lib.experiments.against_hugging_face', case, '--worker']
  workers = {
    side: subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for side in ('ours', 'hugging_face')
  }
  answers: dict[str, list[dict[str, float]]] = {side: [] for side in workers}
  try:
    for side, worker in workers.items():
      if not worker.stdout.readline():
        raise SystemExit(f'The {side} side of {case} ended before it was ready (exit status {worker.wait()}).')
    for _ in range(rounds):
      for side, worker in workers.items():
        worker.stdin.write('run\n')
        worker.stdin.flush()
        answers[side].append(json.loads(worker.stdout.readline()))
  finally:
    for worker in workers.values():
      worker.stdin.close()
      worker.wait()
  seconds = {side: [answer['seconds'] for answer in rows] for side, rows in answers.items()}
  ratios = [a / b for a, b in zip(seconds['ours'], seconds['hugging_face'], strict=True)]
  return {
    'case': CASES[case],
    'median_seconds': {side: statistics.median(values) for side, values in seconds.items()},
    'peak_gigabytes': {side: rows[-1]['peak_gigabytes'] for side, rows in answers.items()},
    'ratio': {'median': statistics.median(ratios), 'smallest': min(ratios), 'largest': max(ratios)},
    'rounds': rounds,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('cases', nargs='+', choices=list(CASES))
  parser.add_argument('--rounds', type=int, default=5, help='timed calls of each side, in turn (default 5)')
  parser.add_argument('--worker', choices=['ours', 'hugging_face'], help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.worker:
    work(arguments.worker, arguments.cases[0])
    return
  for case in arguments.cases:
    print(json.dumps(compare(case, arguments.rounds), indent=2), flush=True)


if __name__ == '__main__':
  main()
