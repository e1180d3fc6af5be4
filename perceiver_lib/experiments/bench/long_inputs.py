"""Bytes read one token at a time at growing lengths: where the cost of a read shows.

Two sizes. "wide": 256 channels a byte, 8 heads in every attention, as lucidrains/perceiver-pytorch. "narrow": 64 input
channels and one cross-attention head, the sizes at which Hugging Face's model is cheap; 256 latents x 256 and 6
self-attends in both.
"""

from __future__ import annotations

import functools

from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.bench.steps import (
  forward_call,
  random_weights,
  torch_forward_call,
  torch_train_call,
  train_call,
)
from perceiver_lib.experiments.measuring import Call

NUM_LATENTS = NUM_CHANNELS = 256
NUM_LAYERS = 6
NARROW = 64
LENGTHS = {'16k': 2**14, '64k': 2**16, '256k': 2**18, '1m': 2**20}


def _ours(size: str, num_bytes: int, train: bool) -> Call:
  import jax.numpy as jnp
  import numpy as np

  from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig
  from perceiver_lib.blocks import LayerConfig
  from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
  from perceiver_lib.tokens import Tokens

  random = np.random.default_rng(0)
  if size == 'wide':
    adapter = EmbeddingAdapterConfig(num_embeddings=256, num_channels=NUM_CHANNELS)
    tokens = Tokens(values=jnp.asarray(random.integers(0, 256, (1, num_bytes)), jnp.int32))
  else:
    adapter = FeatureAdapterConfig(num_values=NARROW)
    tokens = Tokens(values=jnp.asarray(random.standard_normal((1, num_bytes, NARROW), np.float32)))
  config = PerceiverConfig(
    input_adapter=adapter,
    num_latents=NUM_LATENTS,
    num_latent_channels=NUM_CHANNELS,
    num_outputs=10,
    num_self_attends_per_block=NUM_LAYERS,
    cross_attend=LayerConfig(num_heads=8 if size == 'wide' else 1),
    self_attend=LayerConfig(num_heads=8),
  )
  weights = random_weights(Perceiver, config)
  if train:
    return train_call(*weights, lambda model, tokens: jnp.mean(jnp.square(model(tokens))), tokens)
  return forward_call(*weights, lambda model, tokens: model(tokens), tokens)


def _lucidrains(num_bytes: int, train: bool) -> Call:
  import torch
  from perceiver_pytorch import PerceiverIO

  class Bytes(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.embedding = torch.nn.Embedding(256, NUM_CHANNELS)
      self.perceiver = PerceiverIO(
        depth=NUM_LAYERS, dim=NUM_CHANNELS, queries_dim=NUM_CHANNELS, num_latents=NUM_LATENTS,
        latent_dim=NUM_CHANNELS, cross_heads=8, latent_heads=8, cross_dim_head=32, latent_dim_head=32,
      )  # fmt: skip
      self.head = torch.nn.Linear(NUM_CHANNELS, 10)

    def forward(self, ids):
      return self.head(self.perceiver(self.embedding(ids)).mean(1))

  model, ids = Bytes(), torch.randint(0, 256, (1, num_bytes))
  if train:
    return torch_train_call(model, lambda: model(ids).square().mean())
  return torch_forward_call(model, lambda: model(ids))


def _hugging_face(num_bytes: int, train: bool) -> Call:
  import torch
  from transformers import PerceiverConfig, PerceiverModel

  config = PerceiverConfig(
    num_latents=NUM_LATENTS, d_latents=NUM_CHANNELS, d_model=NARROW, num_blocks=1,
    num_self_attends_per_block=NUM_LAYERS, num_self_attention_heads=8, num_cross_attention_heads=1,
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  model, head, values = PerceiverModel(config), torch.nn.Linear(NUM_CHANNELS, 10), torch.randn(1, num_bytes, NARROW)
  forward = lambda: head(model(inputs=values).last_hidden_state.mean(1))  # noqa: E731
  if train:
    return torch_train_call(torch.nn.ModuleList([model, head]), lambda: forward().square().mean())
  return torch_forward_call(model, forward)


def _case(size: str, length: str, train: bool) -> Case:
  num_bytes = LENGTHS[length]
  name, build, package = {
    'wide': ('lucidrains', _lucidrains, 'torch+perceiver_pytorch'),
    'narrow': ('Hugging Face', _hugging_face, 'torch+transformers'),
  }[size]
  peer = {name: Contender(build=functools.partial(build, num_bytes, train), package=package)}
  channels = NUM_CHANNELS if size == 'wide' else NARROW
  return Case(
    title=f'{num_bytes:,} inputs of {channels} channels, {NUM_LATENTS} latents x {NUM_CHANNELS}, {NUM_LAYERS} layers, '
    f'{"8 heads" if size == "wide" else "1 cross-attention head"}, float32, {"training step" if train else "forward"}',
    contenders={'perceiver_lib': Contender(build=functools.partial(_ours, size, num_bytes, train)), **peer},
    amount=num_bytes,
    unit='bytes',
  )


CASES = {
  f'{size}-{length}{"-train" if train else ""}': _case(size, length, train)
  for size in ('wide', 'narrow')
  for length in LENGTHS
  for train in (False, True)
}
