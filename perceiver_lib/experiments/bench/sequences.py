"""Perceiver AR at a context of 2,048, width 256, 6 self-attends, 8 heads, 512 latents: training and generation.

krasserm's perceiver-io 0.11 is the only public implementation with a cache. It is called without its Hugging Face
generation loop, which is slower: the plain model, one token at a time, the likeliest one next.
"""

from __future__ import annotations

import functools
import sys
import types

from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.bench.steps import random_weights, torch_train_call, train_call
from perceiver_lib.experiments.measuring import Call

CONTEXT, NUM_CHANNELS, NUM_LAYERS, NUM_HEADS, NUM_LATENTS, VOCABULARY = 2_048, 256, 6, 8, 512, 262
NUM_NEW = 256
COPY_CONTEXT, COPY_LATENTS, COPY_CHANNELS = 131_072, 1_024, 128
PROMPT = CONTEXT - NUM_NEW


def _model(num_channels: int = NUM_CHANNELS, num_latents: int = NUM_LATENTS):

  from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig

  config = PerceiverARConfig.of_bytes(
    num_channels=num_channels,
    num_latents=num_latents,
    num_self_attends=NUM_LAYERS,
    num_heads=NUM_HEADS,
    vocabulary_size=VOCABULARY,
  )
  return random_weights(PerceiverAR, config)


def _train(context: int = CONTEXT, num_channels: int = NUM_CHANNELS, num_latents: int = NUM_LATENTS) -> Call:
  import jax.numpy as jnp
  import numpy as np

  from perceiver_lib.tokens import Tokens
  from perceiver_lib.training.losses import cross_entropy

  ids = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (1, context)), jnp.int32)
  loss = lambda model, ids: cross_entropy(model(Tokens(values=ids)).values, ids[:, -num_latents:])  # noqa: E731
  return train_call(*_model(num_channels, num_latents), loss, ids)


def _generate() -> Call:
  import numpy as np
  from flax import nnx

  from perceiver_lib.attention.caching import LatentWindow
  from perceiver_lib.generation.stream import generate

  model = nnx.merge(*_model())
  prompt = np.random.default_rng(0).integers(0, VOCABULARY, (1, PROMPT)).astype(np.int32)
  window = LatentWindow(context_length=CONTEXT, num_latents=NUM_LATENTS, num_start_latents=NUM_LATENTS - NUM_NEW)

  def call() -> None:
    generate(model, prompt, window=window, num_tokens=NUM_NEW)

  return call


def _krasserm():
  import torch

  # perceiver-io imports fairscale for one wrapper of activation checkpointing, which is off here.
  fairscale = types.ModuleType('fairscale')
  fairscale.nn = types.ModuleType('fairscale.nn')
  fairscale.nn.checkpoint_wrapper = lambda layer, **_: layer
  sys.modules |= {'fairscale': fairscale, 'fairscale.nn': fairscale.nn}
  from perceiver.model.core import CausalSequenceModel, CausalSequenceModelConfig

  torch.manual_seed(0)
  return CausalSequenceModel(
    CausalSequenceModelConfig(
      vocab_size=VOCABULARY, max_seq_len=CONTEXT, max_latents=NUM_LATENTS, num_channels=NUM_CHANNELS,
      num_heads=NUM_HEADS, num_self_attention_layers=NUM_LAYERS, output_norm=True, abs_pos_emb=False,
      cross_attention_dropout=0.0, init_scale=0.02,
    )
  )  # fmt: skip


def _train_krasserm() -> Call:
  import torch

  model, ids = _krasserm(), torch.randint(0, VOCABULARY, (1, CONTEXT))

  def loss() -> torch.Tensor:
    logits = model(ids, prefix_len=CONTEXT - NUM_LATENTS).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -NUM_LATENTS:].flatten())

  return torch_train_call(model, loss)


def _generate_krasserm() -> Call:
  import torch

  model, prompt = _krasserm().eval(), torch.randint(0, VOCABULARY, (1, PROMPT))
  prefix = CONTEXT - NUM_LATENTS

  def call() -> None:
    with torch.inference_mode():
      output = model(prompt, prefix_len=prefix, kv_cache=[])
      for _ in range(NUM_NEW - 1):
        newest = output.logits[:, -1:].argmax(-1)
        output = model(newest, prefix_len=prefix, kv_cache=output.kv_cache)
      output.logits[:, -1:].argmax(-1)

  return call


def _lucidrains(context: int = CONTEXT, num_channels: int = NUM_CHANNELS, num_latents: int = NUM_LATENTS):
  from perceiver_ar_pytorch import PerceiverAR

  return PerceiverAR(
    num_tokens=VOCABULARY, dim=num_channels, depth=NUM_LAYERS, max_seq_len=context,
    cross_attn_seq_len=context - num_latents, dim_head=num_channels // NUM_HEADS, heads=NUM_HEADS,
  )  # fmt: skip


def _train_lucidrains(*sizes: int) -> Call:
  import torch

  model = _lucidrains(*sizes)
  ids = torch.randint(1, VOCABULARY, (1, model.max_seq_len))
  return torch_train_call(model, lambda: model(ids, labels=ids))


def _generate_lucidrains() -> Call:
  import torch

  model, prompt = _lucidrains().eval(), torch.randint(1, VOCABULARY, (1, PROMPT))

  def call() -> None:
    with torch.inference_mode():
      ids = prompt
      for _ in range(NUM_NEW):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)

  return call


_SIZES = f'Perceiver AR, width {NUM_CHANNELS}, {NUM_LAYERS} self-attends, {NUM_HEADS} heads, {NUM_LATENTS} latents'
_KRASSERM = 'torch+perceiver+einops'
_LUCIDRAINS = 'torch+perceiver_ar_pytorch'

CASES = {
  'ar-train': Case(
    title=f'{_SIZES}: training step on {CONTEXT:,} tokens, batch 1, float32',
    contenders={
      'perceiver_lib': Contender(build=_train),
      'krasserm perceiver-io 0.11': Contender(build=_train_krasserm, package=_KRASSERM),
      'lucidrains': Contender(build=_train_lucidrains, package=_LUCIDRAINS),
    },
    amount=CONTEXT,
    unit='tokens',
  ),
  'ar-copy-131072': Case(
    title=f"Perceiver AR at the context of the paper's copy task, {COPY_CONTEXT:,} tokens with {COPY_LATENTS:,} "
    f'latents and {NUM_LAYERS} self-attends, width {COPY_CHANNELS} instead of 1,024: training step, batch 1, float32',
    contenders={
      'perceiver_lib': Contender(build=functools.partial(_train, COPY_CONTEXT, COPY_CHANNELS, COPY_LATENTS)),
      'lucidrains': Contender(
        build=functools.partial(_train_lucidrains, COPY_CONTEXT, COPY_CHANNELS, COPY_LATENTS), package=_LUCIDRAINS
      ),
    },
    amount=COPY_CONTEXT,
    unit='tokens',
  ),
  'ar-generate': Case(
    title=f'{_SIZES}: {NUM_NEW} tokens behind a prompt of {PROMPT:,}, which is read within the time, batch 1, float32',
    contenders={
      'perceiver_lib': Contender(build=_generate),
      'krasserm perceiver-io 0.11': Contender(build=_generate_krasserm, package=_KRASSERM, note='with its cache'),
      'lucidrains': Contender(build=_generate_lucidrains, package=_LUCIDRAINS, note='has no cache'),
    },
    amount=NUM_NEW,
    unit='tokens',
  ),
}
