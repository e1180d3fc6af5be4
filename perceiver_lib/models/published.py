"""Published presets beside their numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig


class Preset(NamedTuple):
  """Attributes: `parameters` follows from the published sizes to the digit; `in_print` is rounded, with its place."""

  name: str
  model: Callable[..., nnx.Module]
  config: Any
  parameters: int
  in_print: str


def presets() -> list[Preset]:
  """All of them, by model."""
  image, io_image = PerceiverConfig.paper_imagenet, PerceiverIOConfig.paper_imagenet
  language, flow = PerceiverIOConfig.paper_language, PerceiverIOConfig.paper_flow
  rows = {
    Perceiver: [
      ('Perceiver, ImageNet, 1 read', image(num_cross_attends=1), 42_135_859, '42.1M (Perceiver, Tab. 7)'),
      ('Perceiver, ImageNet, 8 reads, shared', image(), 44_912_254, '44.9M (Perceiver, Tab. 7)'),
      ('Perceiver, ImageNet, 8 reads, nothing shared', image(sharing='unshared'), 326_241_856, '326.2M (Perceiver)'),
    ],
    PerceiverIO: [
      ('Perceiver IO, ImageNet, Fourier', io_image(), 48_440_627, '48.4M (IO, Tab. 7)'),
      ('Perceiver IO, ImageNet, learned positions', io_image('learned'), 62_255_848, '62.3M (IO, Tab. 7)'),
      ('Perceiver IO, ImageNet, convolution', io_image('convolution'), 48_646_522, '48.6M (IO, Tab. 7)'),
      ('Perceiver IO, language, bytes', language(), 201_108_230, '201M (IO, Tab. 1)'),
      ('Perceiver IO, language, SentencePiece', language('sentencepiece'), 223_155_456, '223M (IO, Tab. 1)'),
      ('Perceiver IO, language, large (IO++)', language('bytes_large'), 425_607_430, '425M (IO, Tab. 1)'),
      ('Perceiver IO, optical flow, 24 layers', flow(), 41_057_134, 'none in print'),
      ('Perceiver IO, optical flow, 16 layers', flow('small'), 27_908_974, '27.9M (IO, section 4.3)'),
      ('Perceiver IO, multimodal', PerceiverIOConfig.paper_multimodal(), 19_858_855, 'none in print'),
    ],
    PerceiverAR: [
      ('Perceiver AR, ImageNet 64x64', PerceiverARConfig.paper_imagenet64(), 770_094_339, '770.1M (second hand)'),
      ('Perceiver AR, copy 131,072', PerceiverARConfig.paper_copy(), 89_757_955, 'none in print'),
    ],
  }
  return [
    Preset(name, model, config, parameters, in_print)
    for model, of_model in rows.items()
    for name, config, parameters, in_print in of_model
  ]
