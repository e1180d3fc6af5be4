from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.flops import count_flops
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.parameters import abstract, count, filled
from perceiver_lib.tokens import SOURCE_TIME, Tokens
from tests.support import as_users_call, assert_close, compiled

IDS = jnp.asarray(np.random.default_rng(0).integers(0, 262, (2, 11)), jnp.int32)
INDEX = jnp.tile(jnp.arange(11, dtype=jnp.int32), (2, 1))
PREFIX = jnp.where(INDEX < 4, SOURCE_TIME, INDEX)
LENGTHS = pytest.mark.parametrize('length', [None, 11])


def model_of(length: int | None = None, num_layers: int = 2) -> Transformer:
  """Of rotary positions, or of a table."""
  config = TransformerConfig.of_bytes(num_channels=16, num_layers=num_layers, num_heads=2, length=length)
  return Transformer(config, rngs=nnx.Rngs(0))


def sees(time: jax.Array | None, length: int | None) -> np.ndarray:
  """Which inputs change which outputs of one layer: the gradient with respect to the embedded tokens."""
  model = model_of(length, num_layers=1)
  embed = model.input_adapter

  class Given(nnx.Module):
    def __call__(self, tokens):
      return tokens.values

    def attend(self, channels):
      return embed.attend(channels)

  model.input_adapter = Given()
  embedded = compiled(embed, Tokens(values=IDS, position=jnp.arange(11)[None, :, None]))
  jacobian = compiled(jax.jacobian(lambda values: model(Tokens(values=values, time=time))[0].sum(-1)), embedded)
  return np.abs(jacobian[:, 0]).sum(-1) > 0


def test_the_paper_baseline_has_its_size_and_flops():
  """Perceiver IO, Tab. 1: 20M parameters, 130B FLOPs."""
  model = abstract(Transformer, TransformerConfig.paper_bytes())
  assert count(model) == pytest.approx(20e6, rel=0.02)
  flops = count_flops(lambda model, ids: model(Tokens(values=ids)), model, jax.ShapeDtypeStruct((1, 2048), jnp.int32))
  assert flops / 1e9 == pytest.approx(129.4, abs=0.05)


@LENGTHS
def test_time_makes_an_encoder_a_decoder_or_a_prefix_language_model(length):
  """The first four tokens are the source: everything sees it, and it sees nothing but itself."""
  everything = np.ones((11, 11), bool)
  prefix = np.tril(everything)
  prefix[:4, :4] = True
  for time, expected in ((None, everything), (INDEX, np.tril(everything)), (PREFIX, prefix)):
    np.testing.assert_array_equal(sees(time, length), expected)


@LENGTHS
@pytest.mark.parametrize('time', [INDEX, PREFIX])
def test_cached_steps_equal_a_call_over_all_tokens(length, time):
  model = filled(model_of(length), scale=0.1, seed=1)
  valid = jnp.ones((2, 11), bool).at[1, 2:4].set(False)
  whole = compiled(model, Tokens(values=IDS, time=time, valid=valid))
  history = Tokens(values=IDS[:, :5], time=time[:, :5], valid=valid[:, :5])
  cache, logits = jax.jit(lambda history: model.start(history, room=6))(history)
  step, found = jax.jit(lambda cache, ids: model.step(cache, Tokens(values=ids))), [logits]
  for place in range(5, 11):
    cache, logits = step(cache, IDS[:, place : place + 1])
    found.append(logits)
  assert_close(jnp.stack(found, axis=1), whole[:, 4:], 1e-5)


def test_padding_changes_nothing_and_comes_out_as_zero():
  model = model_of()
  time = jnp.tile(jnp.arange(14, dtype=jnp.int32), (2, 1))
  padded = Tokens(values=jnp.pad(IDS, ((0, 0), (0, 3))), time=time, valid=time < 11)
  outputs = compiled(model, padded)
  assert_close(outputs[:, :11], compiled(model, Tokens(values=IDS, time=INDEX)))
  assert np.all(np.asarray(outputs[:, 11:]) == 0)


@LENGTHS
def test_order_matters(length):
  run = jax.jit(model_of(length))
  assert np.abs(run(Tokens(values=IDS[:, ::-1]))[:, ::-1] - run(Tokens(values=IDS))).max() > 1e-3


def test_what_it_cannot_do_is_refused():
  config = model_of().config
  with pytest.raises(ValueError, match='embedding of 7 ids'):
    dataclasses.replace(config, num_outputs=7)
  with as_users_call(), pytest.raises(ValueError, match="linear or tied; got 'zeros'"):
    dataclasses.replace(config, output='zeros')
