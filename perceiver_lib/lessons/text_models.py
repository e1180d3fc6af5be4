"""The models of notebook 02: a Perceiver IO over bytes, the ways to ask it, and a Transformer that costs the same."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.text import VOCAB_SIZE
from perceiver_lib.modalities.text_context import ContextAdapterConfig, num_hole_ids
from perceiver_lib.models.perceiver_io import PerceiverIOConfig
from perceiver_lib.models.transformer import TransformerConfig
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import InputQueries, LearnedQueries

AskedBy = Literal['hole', 'features', 'place']
POSITION = FourierFeatures(num_bands=16, max_resolution=(32,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe:
  """Settings of one profile, chosen on the validation plays.

  Attributes:
    train_steps: of the main training; comparison_steps of each short one; question_steps and
      question_batch_size of the questions' trainings.
    length: bytes of a window.
    radius, num_id_channels, num_channels: of inputs; query_radius, num_query_channels, num_buckets: of queries. See
      `ContextAdapterConfig` and `holes`.
    num_latents, num_latent_channels, num_layers: of the main model.
    mask_rate: share of the words that are hidden when scored, as in the paper.
    train_mask_rate: in training, where one word in three is hidden besides: a read costs more than an answer, and words
      that are spaced out have their neighbours, as most have at 15 %.
    shapes: (latents, channels) that cost about the same, and `asked_by`, ways to ask; for short comparisons.
    long_length, long_batch_size, long_steps: of the comparison with a Transformer, its depth, the latents, their
      channels and the depth of the Perceiver IO beside it, the radius of both, and the windows that score them.
    num_test_windows: of the held-out text that is scored.
  """

  train_steps: int
  comparison_steps: int
  question_steps: int
  long_steps: int
  shapes: tuple[tuple[int, int], ...]
  asked_by: tuple[AskedBy, ...] = ('place', 'features', 'hole')
  length: int = 256
  batch_size: int = 4
  question_batch_size: int = 8
  radius: int = 2
  num_id_channels: int = 16
  num_channels: int = 64
  query_radius: int = 12
  num_query_channels: int = 128
  num_buckets: int = 8_192
  num_latents: int = 32
  num_latent_channels: int = 128
  num_layers: int = 2
  num_heads: int = 4
  mask_rate: float = 0.15
  train_mask_rate: float = 0.07
  learning_rate: float = 4e-3
  long_length: int = 2_048
  long_batch_size: int = 1
  long_transformer_layers: int = 2
  long_latents: int = 256
  long_latent_channels: int = 256
  long_layers: int = 8
  long_radius: int = 8
  num_long_windows: int = 16
  num_test_windows: int = 512


RECIPES = {
  'smoke': TextRecipe(
    train_steps=4, comparison_steps=2, question_steps=2, long_steps=2, shapes=((4, 16),), asked_by=('place',),
    length=64, num_id_channels=4, num_channels=16, query_radius=6, num_query_channels=16, num_buckets=64,
    num_latents=4, num_latent_channels=16, num_layers=1, long_length=128, long_latents=8, long_latent_channels=16,
    long_layers=1, long_transformer_layers=1, long_radius=1, num_long_windows=2, num_test_windows=64,
  ),
  'demo': TextRecipe(
    train_steps=9_000, comparison_steps=250, question_steps=250, long_steps=100,
    shapes=((16, 192), (32, 128), (64, 64)),
  ),
  'full': TextRecipe(
    train_steps=60_000, comparison_steps=10_000, question_steps=3_000, long_steps=10_000,
    shapes=((64, 576), (128, 384), (256, 256)), length=512, batch_size=128, question_batch_size=128, num_channels=256,
    num_query_channels=512, num_buckets=65_536, num_latents=128, num_latent_channels=384, num_layers=8, num_heads=8,
    learning_rate=1e-3, long_batch_size=64, long_latent_channels=384, num_long_windows=64, num_test_windows=2_000,
  ),
}  # fmt: skip


def input_adapter(recipe: TextRecipe, *, radius: int | None = None) -> ContextAdapterConfig:
  """A byte between its neighbours."""
  return ContextAdapterConfig(
    num_ids=2 * (recipe.radius if radius is None else radius) + 1,
    num_id_channels=recipe.num_id_channels,
    num_channels=recipe.num_channels,
    position=POSITION,
  )


def hole_queries(recipe: TextRecipe) -> ContextAdapterConfig:
  """What stands around a hidden word, and which byte of it is asked for."""
  return ContextAdapterConfig(
    num_ids=num_hole_ids(recipe.query_radius),
    num_embeddings=VOCAB_SIZE + recipe.num_buckets,
    num_id_channels=recipe.num_id_channels,
    num_channels=recipe.num_query_channels,
    position=POSITION,
  )


def text_decoder(recipe: TextRecipe, asked_by: AskedBy = 'hole') -> DecoderConfig:
  """Scores of every byte.

  Args:
    asked_by: 'hole', see `hole_queries`; 'features' of the input at the place, as for optical flow; or 'place', the
      learned queries of the paper's text models, which know nothing of the text.
  """
  queries = {
    'hole': hole_queries(recipe),
    'features': InputQueries(),
    'place': LearnedQueries(num_queries=recipe.length, num_channels=recipe.num_query_channels),
  }
  layer = LayerConfig(num_heads=recipe.num_heads, qk_channels=recipe.num_latent_channels, widening_factor=4)
  # Zeros: the first guess is uniform, as a model that has read nothing should guess.
  return DecoderConfig(queries=queries[asked_by], num_outputs=VOCAB_SIZE, output='zeros', cross_attend=layer)


def text_perceiver(recipe: TextRecipe, **changes: Any) -> PerceiverIOConfig:
  """The main model: one read, queries about holes. `changes` replace fields of its config."""
  layer = LayerConfig(num_heads=recipe.num_heads)
  settings = {
    'input_adapter': input_adapter(recipe),
    'num_latents': recipe.num_latents,
    'num_latent_channels': recipe.num_latent_channels,
    'num_self_attends_per_block': recipe.num_layers,
    'cross_attend': dataclasses.replace(layer, qk_channels=recipe.num_latent_channels),
    'self_attend': layer,
    'decoder': text_decoder(recipe),
  }
  return PerceiverIOConfig(**(settings | changes))


def long_models(recipe: TextRecipe) -> dict[str, PerceiverIOConfig | TransformerConfig]:
  """A byte Transformer, and a Perceiver IO that costs about the same a step, over texts of `long_length` bytes.

  Both get the same inputs, and the Perceiver IO is asked with the features of an input, so neither knows more. As in
  the paper (Tab. 1: 6 layers over 2,048 bytes or 26 over 256 latents), what is saved on attention buys depth.
  """
  recipe = dataclasses.replace(recipe, num_latent_channels=recipe.long_latent_channels)
  adapter, layer = input_adapter(recipe, radius=recipe.long_radius), LayerConfig(num_heads=recipe.num_heads)
  return {
    'Transformer': TransformerConfig(
      input_adapter=adapter,
      num_layers=recipe.long_transformer_layers,
      self_attend=dataclasses.replace(layer, widening_factor=4),
      num_outputs=VOCAB_SIZE,
    ),
    'Perceiver IO': text_perceiver(
      recipe,
      input_adapter=adapter,
      num_latents=recipe.long_latents,
      num_self_attends_per_block=recipe.long_layers,
      cross_attend=layer,
      decoder=dataclasses.replace(
        text_decoder(recipe, 'features'), output='linear', cross_attend=dataclasses.replace(layer, widening_factor=4)
      ),
    ),
  }
