"""What an encoding is good for, in seconds: many questions to one, many outputs of one, and tokens one by one.

For notebook 10; nothing is trained, since no time depends on the values of the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.experiments.measuring import compiled, in_turn, temporary_megabytes
from perceiver_lib.generation.stream import GREEDY, generate
from perceiver_lib.lessons.scaling import NUM_IDS
from perceiver_lib.lessons.tour import random_bytes
from perceiver_lib.models.perceiver import PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.parameters import abstract, filled
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import PositionQueries, position_queries
from perceiver_lib.tokens import Tokens

DECODE_CHUNK = 1_024
QUERIES_PER_QUESTION = 64
NEW_TOKENS = 64


def asked_model(num_bytes: int) -> PerceiverIO:
  """The byte Perceiver of the first section as a Perceiver IO: three numbers for every position that is asked for."""
  reader = PerceiverConfig.of_bytes(num_bytes)
  position = FourierFeatures(num_bands=64, max_resolution=(num_bytes,))
  config = PerceiverIOConfig(
    input_adapter=reader.input_adapter,
    num_latents=reader.num_latents,
    num_latent_channels=reader.num_latent_channels,
    num_self_attends_per_block=reader.num_self_attends_per_block,
    cross_attend=reader.cross_attend,
    self_attend=reader.self_attend,
    decoder=DecoderConfig(
      queries=PositionQueries(position=position), num_outputs=3, cross_attend=LayerConfig(num_heads=1)
    ),
  )
  return filled(abstract(PerceiverIO, config), scale=0.02)


def queries_at(num_queries: int) -> Tokens:
  return position_queries(np.linspace(-1, 1, num_queries, dtype=np.float32)[:, None], batch_size=1)


def seconds_of_questions(num_bytes: int, numbers: Sequence[int], rounds: int) -> dict[tuple[str, int], list[float]]:
  """Seconds for k questions of 64 positions each about the same bytes: {('encoded once' or 'whole calls', k): [...]}.

  The calls are made in turn.
  """
  model, tokens, queries = asked_model(num_bytes), random_bytes(num_bytes), queries_at(QUERIES_PER_QUESTION)
  encode = jax.jit(lambda model, tokens: model.encode(tokens))
  decode = jax.jit(lambda model, latents, queries: model.decode(latents, queries))
  whole = jax.jit(lambda model, tokens, queries: model(tokens, queries))

  def once(k: int) -> list[Any]:
    latents = encode(model, tokens)
    return [decode(model, latents, queries) for _ in range(k)]

  calls: dict[tuple[str, int], Callable[[], Any]] = {}
  for k in numbers:
    calls['encoded once', k] = lambda k=k: once(k)
    calls['whole calls', k] = lambda k=k: [whole(model, tokens, queries) for _ in range(k)]
  return in_turn(calls, rounds)


def decoding_megabytes(log2_queries: Sequence[int]) -> dict[str, list[float]]:
  """What the compiled decoder sets aside besides its outputs, all queries at once and in chunks. Nothing is run."""
  model = asked_model(2**10)
  latents = Tokens(values=jnp.zeros((1, model.config.num_latents, model.config.num_latent_channels)))
  sizes: dict[str, list[float]] = {}
  for name, chunk_size in (('all at once', None), (f'{DECODE_CHUNK:,} at a time', DECODE_CHUNK)):
    decode = functools.partial(PerceiverIO.decode, chunk_size=chunk_size)
    sizes[name] = [temporary_megabytes(compiled(decode, model, latents, queries_at(2**log2))) for log2 in log2_queries]
  return sizes


def tokens_a_second(
  contexts: Sequence[int], *, num_layers: int, recomputed_tokens: int, rounds: int
) -> dict[tuple[str, int], list[float]]:
  """Generated tokens a second, the reading of the prompt included: {('cached' or 'recomputed', context): [...]}.

  A Perceiver AR of 128 channels with up to 128 latents. Recomputed is the same compiled loop with a window
  that has no room, so that every token reads its whole context again.
  """
  num_latents = min(128, min(contexts))
  config = PerceiverARConfig.of_bytes(
    num_channels=128, num_latents=num_latents, num_self_attends=num_layers, num_heads=4, vocabulary_size=NUM_IDS
  )
  model = filled(abstract(PerceiverAR, config), scale=0.02)
  calls, amounts = {}, {}
  for context in contexts:
    prompt = np.random.default_rng(0).integers(0, NUM_IDS, (1, context - num_latents // 2)).astype(np.int32)
    for name, start, amount in (
      ('cached', num_latents // 2, min(NEW_TOKENS, num_latents // 2)),
      ('recomputed', num_latents, recomputed_tokens),
    ):
      window = LatentWindow(context_length=context, num_latents=num_latents, num_start_latents=start)
      calls[name, context] = lambda prompt=prompt, window=window, amount=amount: generate(
        model, prompt, window=window, num_tokens=amount, sampler=GREEDY
      )
      amounts[name, context] = amount
  seconds = in_turn(calls, rounds)
  return {key: [amounts[key] / one for one in values] for key, values in seconds.items()}
