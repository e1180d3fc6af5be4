from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.flops import count_flops
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.parameters import abstract, count
from perceiver_lib.tokens import Tokens
from tests.support import as_users_call, assert_close, compiled

IDS = jnp.asarray(np.random.default_rng(0).integers(0, 262, (2, 11)), jnp.int32)


def sees(config: TransformerConfig) -> np.ndarray:
  """Which inputs change which outputs of one layer: the gradient with respect to the embedded tokens."""
  model = Transformer(dataclasses.replace(config, num_layers=1), rngs=nnx.Rngs(0))
  embed = model.input_adapter

  class Given(nnx.Module):
    def __call__(self, tokens):
      return tokens.values

    def attend(self, channels):
      return embed.attend(channels)

  model.input_adapter = Given()
  embedded = compiled(embed, Tokens(values=IDS, position=jnp.arange(11)[None, :, None]))
  jacobian = compiled(jax.jacobian(lambda values: model(Tokens(values=values))[0].sum(-1)), embedded)
  return np.abs(jacobian[:, 0]).sum(-1) > 0


def test_the_paper_baseline_has_its_size_and_flops():
  """Perceiver IO, Tab. 1: 20M parameters, 130B FLOPs."""
  model = abstract(Transformer, TransformerConfig.paper_bytes())
  assert count(model) == pytest.approx(20e6, rel=0.02)
  flops = count_flops(lambda model, ids: model(Tokens(values=ids)), model, jax.ShapeDtypeStruct((1, 2048), jnp.int32))
  assert flops / 1e9 == pytest.approx(129.4, abs=0.05)


@pytest.mark.parametrize('length', [None, 11])
@pytest.mark.parametrize('causal', [False, True])
def test_causal_models_see_the_past_and_others_see_everything(causal, length):
  everything = np.ones((11, 11), bool)
  expected = np.tril(everything) if causal else everything
  np.testing.assert_array_equal(sees(TransformerConfig.tiny(length=length, causal=causal)), expected)


def test_a_window_is_this_block_and_the_one_before():
  """Window 6: blocks of three tokens, the last of them short."""
  block = np.arange(11) // 3
  expected = np.tril(block[:, None] - block[None] <= 1)
  assert expected.sum(1).max() == 6
  np.testing.assert_array_equal(sees(TransformerConfig.tiny(causal=True, window=6)), expected)


def test_a_window_longer_than_the_text_changes_nothing():
  config = TransformerConfig.tiny(causal=True)
  full, local = (Transformer(dataclasses.replace(config, window=w), rngs=nnx.Rngs(0)) for w in (None, 22))
  assert_close(compiled(local, Tokens(values=IDS)), compiled(full, Tokens(values=IDS)))


@pytest.mark.parametrize('window', [None, 6])
def test_padding_changes_nothing_and_comes_out_as_zero(window):
  model = Transformer(TransformerConfig.tiny(causal=True, window=window), rngs=nnx.Rngs(0))
  padded = Tokens(values=jnp.pad(IDS, ((0, 0), (0, 3))), valid=jnp.arange(14)[None] < jnp.array([[11], [11]]))
  outputs = compiled(model, padded)
  assert_close(outputs[:, :11], compiled(model, Tokens(values=IDS)))
  assert np.all(np.asarray(outputs[:, 11:]) == 0)


def test_order_matters():
  for config in (TransformerConfig.tiny(), TransformerConfig.tiny(length=11)):
    run = jax.jit(Transformer(config, rngs=nnx.Rngs(0)))
    assert np.abs(run(Tokens(values=IDS[:, ::-1]))[:, ::-1] - run(Tokens(values=IDS))).max() > 1e-3


def test_what_it_cannot_do_is_refused():
  for causal, window in ((False, 6), (True, 5), (True, 0)):
    with pytest.raises(ValueError, match='must be even, 2 or more, and causal'):
      TransformerConfig.tiny(causal=causal, window=window)
  config = TransformerConfig.tiny(causal=True)
  with pytest.raises(ValueError, match='embedding of 7 ids'):
    dataclasses.replace(config, num_outputs=7)
  with as_users_call(), pytest.raises(ValueError, match="linear or tied; got 'zeros'"):
    dataclasses.replace(config, output='zeros')
  with pytest.raises(ValueError, match='got inputs with a time'):
    Transformer(config, rngs=nnx.Rngs(0))(Tokens(values=IDS, time=jnp.zeros((2, 11), jnp.int32)))
