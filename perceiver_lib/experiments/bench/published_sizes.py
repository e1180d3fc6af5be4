"""Perceiver IO at published sizes, against Hugging Face's PyTorch port (`modeling_perceiver.py`).

Hugging Face runs without its default dropout, as ours does.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from perceiver_lib.experiments.bench.harness import Case, Contender
from perceiver_lib.experiments.bench.steps import (
  forward_call,
  random_weights,
  torch_forward_call,
  torch_train_call,
  train_call,
)
from perceiver_lib.experiments.measuring import Call

LENGTH = 2_048
FLOW_SHAPE = (368, 496)
IMAGE_SIZE = 224


def language_model(mixed_precision: bool = False) -> tuple[Any, Any, Any]:
  """Definition and weights of the language model on bytes, and a text."""
  import jax.numpy as jnp
  import numpy as np

  from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
  from perceiver_lib.tokens import Tokens

  config = dataclasses.replace(PerceiverIOConfig.paper_language('bytes'), mixed_precision=mixed_precision)
  weights = random_weights(PerceiverIO, config)
  ids = jnp.asarray(np.random.default_rng(0).integers(6, 262, (1, LENGTH)), jnp.int32)
  return *weights, Tokens(values=ids, position=jnp.arange(LENGTH, dtype=jnp.int32)[None, :, None])


def language_loss(model: Any, tokens: Any) -> Any:
  from perceiver_lib.training.losses import cross_entropy

  return cross_entropy(model(tokens), tokens.values)


def _language(train: bool, mixed_precision: bool = False) -> Call:
  *weights, tokens = language_model(mixed_precision)
  if train:
    return train_call(*weights, language_loss, tokens)
  return forward_call(*weights, lambda model, tokens: model(tokens), tokens)


def _language_hugging_face(train: bool, mixed_precision: bool = False) -> Call:
  import torch
  from transformers import PerceiverConfig, PerceiverForMaskedLM

  model = PerceiverForMaskedLM(PerceiverConfig(attention_probs_dropout_prob=0.0))
  ids = torch.randint(6, 262, (1, LENGTH))

  def output() -> Any:
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed_precision):
      return model(inputs=ids, labels=ids) if train else model(inputs=ids)

  return torch_train_call(model, lambda: output().loss) if train else torch_forward_call(model, output)


def _image(train: bool) -> Call:
  import jax.numpy as jnp
  import numpy as np

  from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
  from perceiver_lib.positions import grid
  from perceiver_lib.tokens import Tokens
  from perceiver_lib.training.losses import cross_entropy

  weights = random_weights(PerceiverIO, PerceiverIOConfig.paper_imagenet('fourier'))
  shape = (IMAGE_SIZE, IMAGE_SIZE)
  values = np.random.default_rng(0).uniform(-1, 1, (1, IMAGE_SIZE**2, 3))
  tokens = Tokens(values=jnp.asarray(values, jnp.float32), position=jnp.asarray(grid(shape))[None])
  label = jnp.zeros((1, 1), jnp.int32)
  if train:
    return train_call(*weights, lambda model, tokens: cross_entropy(model(tokens), label), tokens)
  return forward_call(*weights, lambda model, tokens: model(tokens), tokens)


def _image_hugging_face(train: bool) -> Call:
  import torch
  from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

  config = PerceiverConfig(
    num_latents=512, d_latents=1024, d_model=261, num_blocks=8, num_self_attends_per_block=6,
    num_self_attention_heads=8, num_cross_attention_heads=1, num_labels=1000, attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  model = PerceiverForImageClassificationFourier(config)
  image, label = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE), torch.zeros(1, dtype=torch.long)
  if train:
    return torch_train_call(model, lambda: model(inputs=image, labels=label).loss)
  return torch_forward_call(model, lambda: model(inputs=image))


def _flow() -> Call:
  import jax.numpy as jnp
  import numpy as np

  from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
  from perceiver_lib.positions import grid
  from perceiver_lib.tokens import Tokens

  weights = random_weights(PerceiverIO, PerceiverIOConfig.paper_flow('large'))
  num_pixels = FLOW_SHAPE[0] * FLOW_SHAPE[1]
  values = np.random.default_rng(0).uniform(-1, 1, (1, num_pixels, 54))
  tokens = Tokens(values=jnp.asarray(values, jnp.float32), position=jnp.asarray(grid(FLOW_SHAPE))[None])
  return forward_call(*weights, lambda model, tokens: model(tokens, decode_chunk_size=num_pixels // 8), tokens)


def _flow_hugging_face() -> Call:
  import torch
  from transformers import PerceiverConfig, PerceiverForOpticalFlow

  config = PerceiverConfig(
    num_latents=2_048, d_latents=512, d_model=322, num_blocks=1, num_self_attends_per_block=24,
    num_self_attention_heads=16, num_cross_attention_heads=1, train_size=list(FLOW_SHAPE),
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  model = PerceiverForOpticalFlow(config)
  pair = torch.rand(1, 2, 27, *FLOW_SHAPE) * 2 - 1
  return torch_forward_call(model, lambda: model(inputs=pair))


def _case(title: str, ours: functools.partial[Call], theirs: functools.partial[Call], amount: float, unit: str) -> Case:
  hugging_face = Contender(build=theirs, package='torch+transformers')
  return Case(
    title=title,
    contenders={'perceiver_lib': Contender(build=ours), 'Hugging Face': hugging_face},
    amount=amount,
    unit=unit,
  )


_LANGUAGE = 'language model on bytes, 201,108,230 parameters, batch 1, 2,048 bytes, float32'
_IMAGE = 'ImageNet with Fourier features, 48,440,627 parameters, one image of 224 x 224, float32'
_FLOW = 'optical flow, 41,057,134 parameters, one pair of 368 x 496, float32, forward'


def _mixed(train: bool) -> Case:
  return Case(
    title=f'{_LANGUAGE.removesuffix(", float32")}, mixed precision, {"training step" if train else "forward"}',
    contenders={
      'perceiver_lib, mixed': Contender(
        build=functools.partial(_language, train, True), note='operands bfloat16, sums float32'
      ),
      'perceiver_lib, float32': Contender(build=functools.partial(_language, train)),
      'Hugging Face, autocast to bfloat16': Contender(
        build=functools.partial(_language_hugging_face, train, True), package='torch+transformers'
      ),
    },
    amount=LENGTH,
    unit='bytes',
  )


CASES = {
  'language-bf16': _mixed(False),
  'language-train-bf16': _mixed(True),
  'language': _case(
    f'{_LANGUAGE}, forward',
    functools.partial(_language, False),
    functools.partial(_language_hugging_face, False),
    LENGTH,
    'bytes',
  ),
  'language-train': _case(
    f'{_LANGUAGE}, training step',
    functools.partial(_language, True),
    functools.partial(_language_hugging_face, True),
    LENGTH,
    'bytes',
  ),
  'image': _case(
    f'{_IMAGE}, forward', functools.partial(_image, False), functools.partial(_image_hugging_face, False), 1, 'images'
  ),
  'image-train': _case(
    f'{_IMAGE}, training step',
    functools.partial(_image, True),
    functools.partial(_image_hugging_face, True),
    1,
    'images',
  ),
  'flow': _case(_FLOW, functools.partial(_flow), functools.partial(_flow_hugging_face), 1, 'pairs'),
}
