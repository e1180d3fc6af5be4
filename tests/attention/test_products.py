"""Mixed precision: every product of bfloat16 operands with float32 sums, and nothing else of bfloat16."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.attention import block_causal
from perceiver_lib.attention.caching import LatentWindow
from perceiver_lib.attention.products import product
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.generation.stream import generate
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.models.unified import LearnedLatents, UnifiedPerceiver, UnifiedPerceiverConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from perceiver_lib.training.fit import fit
from perceiver_lib.training.losses import cross_entropy
from tests.support import BFLOAT16, ROUNDING, GivenQueries, assert_close, assert_close_in_norm

RANDOM = np.random.default_rng(0)
IDS = Tokens(values=jnp.asarray(RANDOM.integers(0, 9, (2, 24)), jnp.int32))
PIXELS = Tokens(values=jnp.asarray(RANDOM.normal(size=(2, 24, 3)), jnp.float32))
TIME = jnp.asarray(RANDOM.integers(0, 6, (2, 24)), jnp.int32)
QUERIES = Tokens(values=jnp.asarray(RANDOM.normal(size=(2, 5, 6)), jnp.float32), time=TIME[:, :5])
LAYER = LayerConfig(num_heads=2)

LANGUAGE = PerceiverIOConfig.masked_language(
  num_latents=6, num_latent_channels=16, num_self_attends=2, num_channels=12, qk_channels=8, num_heads=2, length=24,
  vocabulary_size=9,
)  # fmt: skip
UNIFIED = UnifiedPerceiverConfig(
  input_adapter=FeatureAdapterConfig(num_values=3, num_projected_channels=10),
  latents=LearnedLatents(num_latents=4, num_timesteps=6),
  num_latent_channels=16,
  num_self_attends_per_block=2,
  self_attend=LAYER,
  decoder=DecoderConfig(queries=GivenQueries(num_channels=6), num_outputs=3),
)


def language(model):
  position = jnp.arange(24, dtype=jnp.int32)[None, :, None]
  return model(dataclasses.replace(IDS, position=position))


CASES = {
  'streamed read': (
    Perceiver,
    PerceiverConfig.tiny(FeatureAdapterConfig(num_values=3, num_projected_channels=10), num_outputs=3),
    lambda model: model(PIXELS, chunk_size=5),
  ),
  'dense reads and a tied output': (PerceiverIO, LANGUAGE, language),
  'causal and rotary': (PerceiverAR, PerceiverARConfig.tiny(9), lambda model: model(IDS, chunk_size=7).values),
  'prefix read and block-causal': (
    UnifiedPerceiver,
    UNIFIED,
    lambda model: model(dataclasses.replace(PIXELS, time=TIME), QUERIES, chunk_size=4),
  ),
  'no latents': (
    Transformer,
    TransformerConfig.of_bytes(num_channels=16, num_layers=2, num_heads=2, vocabulary_size=9),
    lambda model: model(dataclasses.replace(IDS, time=TIME)),
  ),
}


@pytest.fixture(autouse=True)
def latents_in_blocks(monkeypatch):
  """Small models too take the block-causal path."""
  monkeypatch.setattr(block_causal, 'choose_chunk_size', lambda *_: 1)
  monkeypatch.setattr(block_causal, 'BLOCK_ROWS', 8)


def pair_of(name: str) -> tuple[nnx.Module, nnx.Module]:
  """The float32 model and the mixed one, with the same random weights."""
  kind, config, _ = CASES[name]
  pair = (kind(dataclasses.replace(config, mixed_precision=on), rngs=nnx.Rngs(0)) for on in (False, True))
  return tuple(filled(model, scale=0.2, seed=1) for model in pair)


def gradient_of(name: str):
  forward = CASES[name][2]

  def loss(model):
    output = forward(model)
    return jnp.mean(jnp.sin(output)), output

  return jax.value_and_grad(loss, has_aux=True)


def rounded(x) -> np.ndarray:
  return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize('spec', ['mc,cd->md', 'bhik,bhjk->bhij', 'bhij,bhjv->bhiv', 'boc,ec->boe', 'bhki,bhij->bhkj'])
def test_a_product_and_its_gradient_equal_numpy_on_rounded_operands(spec):
  operands, result = spec.split('->')
  left, right = operands.split(',')
  size = dict(zip('bhijkvmcdoe', (2, 3, 17, 23, 8, 10, 37, 19, 11, 5, 7), strict=True))
  random = np.random.default_rng(0)
  a, b, cotangent = (random.normal(size=[size[x] for x in part]).astype(np.float32) for part in (left, right, result))
  exact = np.einsum(spec, rounded(a), rounded(b))
  expected = [
    exact,
    np.einsum(f'{result},{right}->{left}', rounded(cotangent), rounded(b)),
    np.einsum(f'{left},{result}->{right}', rounded(a), rounded(cotangent)),
  ]

  @jax.jit
  def found(a, b, cotangent):
    value, pull_back = jax.vjp(lambda a, b: product(spec, a, b, 'bfloat16'), a, b)
    return [value, *pull_back(cotangent)]

  for actual, wanted in zip(found(a, b, cotangent), expected, strict=True):
    assert actual.dtype == jnp.float32
    assert_close(actual, wanted, ROUNDING)
  assert np.abs(exact - np.einsum(spec, a, b)).max() > 100 * ROUNDING * np.abs(exact).max()


def test_without_bfloat16_a_product_is_the_plain_einsum():
  a, b = jnp.ones((2, 3)), jnp.ones((3, 4))
  plain = jax.make_jaxpr(lambda a, b: jnp.einsum('mc,cd->md', a, b, preferred_element_type=jnp.float32))(a, b)
  assert str(jax.make_jaxpr(lambda a, b: product('mc,cd->md', a, b))(a, b)) == str(plain)


def equations(jaxpr):
  """All operations of a program, at every depth."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
        yield from equations(getattr(inner, 'jaxpr', inner))


@pytest.mark.parametrize('name', CASES)
def test_exactly_the_products_are_of_bfloat16(name):
  """Of the whole training gradient: every product, none left out, and nothing else computes in bfloat16."""
  plain, mixed = pair_of(name)
  types = {}
  for model in (plain, mixed):
    program = jax.make_jaxpr(gradient_of(name))(model).jaxpr
    products = [e for e in equations(program) if e.primitive.name == 'dot_general']
    found = {(*(str(x.aval.dtype) for x in e.invars), str(e.outvars[0].aval.dtype)) for e in products}
    computed = {'exp', 'tanh', 'log', 'rsqrt', 'reduce_sum', 'reduce_max', 'add', 'mul', 'sub', 'div', 'add_any'}
    low = {e.primitive.name for e in equations(program) for x in e.invars if str(x.aval.dtype) == 'bfloat16'} & computed
    types[model is mixed] = found
    assert not low, low
  assert types == {False: {('float32',) * 3}, True: {('bfloat16', 'bfloat16', 'float32')}}


@pytest.mark.parametrize('name', CASES)
def test_outputs_and_gradients_are_float32_and_close_to_those_of_float32(name):
  plain, mixed = pair_of(name)
  compiled = jax.jit(gradient_of(name))
  # The same compiled function for both: the choice is part of the module that jit sees.
  (_, expected), expected_gradients = compiled(plain)
  (_, found), gradients = compiled(mixed)
  assert found.dtype == jnp.float32
  assert_close_in_norm(found, expected, BFLOAT16)
  found, expected = (dict(nnx.to_flat_state(nnx.state(g))) for g in (gradients, expected_gradients))
  assert found.keys() == expected.keys()
  assert all(leaf[...].dtype == jnp.float32 for leaf in found.values())
  assert_close_in_norm(
    *(jnp.concatenate([jnp.ravel(flat[path][...]) for path in sorted(found)]) for flat in (found, expected)), BFLOAT16
  )


def test_a_cache_is_of_bfloat16_and_generation_agrees_with_recomputation():
  _, model = pair_of('causal and rotary')
  window = LatentWindow(context_length=24, num_latents=8, num_start_latents=4)
  cache, _ = jax.jit(lambda model: model.start(IDS, window, room=4))(model)
  assert {array.dtype for pair in cache.layers for array in pair} == {jnp.dtype(jnp.bfloat16)}
  tokens = generate(model, np.asarray(IDS.values[:, :10]), window=window, num_tokens=4)
  history = np.concatenate([np.asarray(IDS.values[:, :10]), tokens], axis=1)
  # 4 latents at the start, one more with every token: the last token was chosen by the 7th latent.
  logits = jax.jit(lambda model, ids: model(Tokens(values=ids), num_latents=7).values[:, -1])(model, history[:, :13])
  chosen = np.take_along_axis(np.asarray(logits), history[:, 13:], axis=1)[:, 0]
  assert (chosen >= logits.max(-1) - BFLOAT16 * np.abs(logits).max()).all()


def test_training_learns_as_float32_does():
  """Which of nine ids comes next is a rule: both losses fall by the same."""

  def batches(start):
    while True:
      first = np.random.default_rng(start).integers(0, 9, (16, 1))
      yield {'ids': ((first + 2 * np.arange(13)) % 9).astype(np.int32)}
      start += 1

  def loss_fn(model, batch, rngs):
    logits = model(Tokens(values=batch['ids'][:, :-1]), num_latents=8, rngs=rngs).values
    return cross_entropy(logits, batch['ids'][:, -8:]), {}

  losses = {}
  for on in (False, True):
    config = dataclasses.replace(PerceiverARConfig.tiny(9), mixed_precision=on)
    model = PerceiverAR(config, rngs=nnx.Rngs(0))
    result = fit(model, loss_fn, batches, optimizer=optax.adam(1e-2), num_steps=60, seed=0, log_every=10)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(result.model, nnx.Param)))
    losses[on] = result.curve('train_loss')[1]
  assert losses[False][-1] < 0.2 * losses[False][0]
  assert losses[True][-1] < 0.2 * losses[True][0]
  np.testing.assert_allclose(losses[True][:2], losses[False][:2], rtol=BFLOAT16)
