"""The rule by gradients, dense = streamed in values and gradients, masked rows, NaN, dropout, golden arrays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_lib.attention.attend import DENSE_LOGITS, Attention, KeyValueReader, attend, choose_chunk_size, read
from perceiver_lib.attention.streamed import Dropout
from perceiver_lib.tokens import Tokens, may_attend
from tests.reference import make_golden
from tests.support import GOLDEN, STREAMED, as_users_call, assert_close, compiled, set_parameters

BATCH, HEADS, QUERIES, KEYS, QK, V = 2, 3, 5, 13, 7, 11


def operands(seed=0, batch=BATCH, heads=HEADS, queries=QUERIES, keys=KEYS):
  random = np.random.default_rng(seed)
  shapes = ((batch, heads, queries, QK), (batch, heads, keys, QK), (batch, heads, keys, V))
  q, k, v = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
  masks = {
    'query_time': jnp.asarray(random.integers(-1, 4, (batch, queries)), jnp.int32),
    'key_time': jnp.asarray(random.integers(0, 4, (batch, keys)), jnp.int32),
    'key_valid': jnp.asarray(random.random((batch, keys)) > 0.3),
  }
  return (q, k, v), masks


@pytest.mark.parametrize('chunk_size', [None, 1, 4, 13])
def test_the_jacobian_is_zero_exactly_where_the_rule_says_no(chunk_size):
  (q, k, v), masks = operands()
  allowed = np.asarray(may_attend(masks['query_time'], masks['key_time'], masks['key_valid']))

  def total(k, v, query):
    # sin makes the sum over channels depend on every one of them.
    return jnp.sum(jnp.sin(attend(q, k, v, chunk_size=chunk_size, **masks)[:, :, query]))

  gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
  for query in range(QUERIES):
    d_k, d_v = gradient(k, v, query)
    reached_v = np.abs(np.asarray(d_v)).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(reached_v, allowed[:, query])
    alone = allowed[:, query].sum(axis=-1, keepdims=True) < 2  # softmax over one key is constant in that key
    reached_k = np.abs(np.asarray(d_k)).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(reached_k, allowed[:, query] & ~alone)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(chunk_size, arrays, cotangent, masks, dropout):
  output, pull_back = jax.vjp(functools.partial(attend, chunk_size=chunk_size, dropout=dropout, **masks), *arrays)
  return output, pull_back(cotangent)


# Each is compiled once, whatever the seeds: a single key, fewer keys than a chunk, chunks that fit and that do not.
@settings(max_examples=24, deadline=None)
@given(
  seed=st.integers(0, 2**16),
  how=st.sampled_from(
    [
      ((1, 1, 1, 1), 1, ('time', 'valid'), True),
      ((2, 3, 5, 13), 4, ('time', 'valid'), True),
      ((2, 3, 5, 13), 13, ('time',), False),
      ((3, 2, 7, 23), 1, ('valid',), False),
      ((3, 2, 7, 23), 8, ('time', 'valid'), False),
      ((1, 3, 6, 22), 29, ('time',), True),
      ((3, 1, 2, 16), 4, (), True),
      ((2, 2, 4, 9), 7, (), False),
    ]
  ),
)
def test_streamed_equals_dense_in_values_and_gradients(seed, how):
  shape, chunk_size, given_masks, dropout = how
  arrays, masks = operands(seed, *shape)
  kept = {name: mask for name, mask in masks.items() if name.split('_')[1] in given_masks}
  drop = Dropout(rate=0.4, seed=jax.random.key(seed)) if dropout else None
  cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=(*shape[:3], V)), jnp.float32)
  streamed, dense = (value_and_gradients(size, arrays, cotangent, kept, drop) for size in (chunk_size, None))
  assert_close(streamed, dense, STREAMED)


@pytest.mark.parametrize('chunk_size', [None, 5])
def test_rows_that_may_attend_to_nothing_are_exactly_zero_with_finite_gradients(chunk_size):
  (q, k, v), masks = operands()
  masks['query_time'] = masks['query_time'].at[0, 2].set(-7)
  masks['key_valid'] = masks['key_valid'].at[1].set(False)

  def output(q, k, v):
    return attend(q, k, v, chunk_size=chunk_size, **masks)

  out = np.asarray(compiled(output, q, k, v))
  assert np.all(out[0, :, 2] == 0) and np.all(out[1] == 0)
  assert np.any(out[0] != 0)
  gradient = jax.grad(lambda *args: jnp.sum(output(*args) ** 2 + output(*args)), argnums=(0, 1, 2))
  gradients = compiled(gradient, q, k, v)
  assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
  assert np.all(np.asarray(gradients[0])[0, :, 2] == 0)


@pytest.mark.parametrize('chunk_size', [None, 5])
def test_garbage_in_later_or_invalid_keys_changes_no_bit(chunk_size):
  (q, k, v), masks = operands()
  run = jax.jit(functools.partial(attend, chunk_size=chunk_size, **masks))
  out = np.asarray(run(q, k, v))
  hidden = np.asarray((masks['key_time'] > 1) | ~masks['key_valid'])[:, None, :, None]
  spoiled = np.asarray(run(q, jnp.where(hidden, jnp.nan, k), jnp.where(hidden, jnp.nan, v)))
  early = np.broadcast_to(np.asarray(masks['query_time'] <= 1)[:, None], out.shape[:3])
  np.testing.assert_array_equal(spoiled[early], out[early])
  late = (
    np.asarray(may_attend(masks['query_time'], masks['key_time'], masks['key_valid'])) & hidden[:, 0, :, 0][:, None]
  )
  assert np.all(np.isnan(spoiled[np.broadcast_to(late.any(-1)[:, None], out.shape[:3])]))


def test_dropout_is_unbiased_and_really_drops():
  (q, k, v), _ = operands(queries=1)
  plain = attend(q, k, v)
  seeds = jax.random.split(jax.random.key(0), 4_000)
  dropped = compiled(jax.vmap(lambda seed: attend(q, k, v, dropout=Dropout(rate=0.5, seed=seed))), seeds)
  assert float(jnp.std(dropped, axis=0).min()) > 0.01
  standard_error = jnp.std(dropped, axis=0) / 4_000**0.5
  assert float(jnp.max(jnp.abs(jnp.mean(dropped, axis=0) - plain) / standard_error)) < 5


def test_wrong_operands_are_named():
  (q, k, v), _ = operands()
  with as_users_call(), pytest.raises(ValueError, match=r'q \[b h i k\].*got \(2, 3, 5, 6\), \(2, 3, 13, 7\)'):
    attend(q[..., :6], k, v)


def test_chunks_follow_from_shapes():
  limit = DENSE_LOGITS['cpu']
  assert choose_chunk_size(2_048, limit // 2_048, 'cpu') is None
  assert choose_chunk_size(2_048, limit // 2_048 + 1, 'cpu') == 256
  assert choose_chunk_size(2_048, 2**20, 'gpu') == 4_096
  assert choose_chunk_size(1, 2**40, 'cpu') == 4_096
  assert choose_chunk_size(2**22, 2**10, 'cpu') == 128


def attention_module(**changes) -> Attention:
  settings = {
    'num_query_channels': make_golden.QUERY_CHANNELS,
    'num_input_channels': make_golden.INPUT_CHANNELS,
    'num_output_channels': make_golden.OUTPUTS,
    'qk_channels': make_golden.QK_CHANNELS,
    'v_channels': make_golden.V_CHANNELS,
    'num_heads': make_golden.HEADS,
    'dropout': 0.0,
    'rotary': None,
  }
  return Attention(**(settings | changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_golden_attention_with_separate_widths(chunk_size):
  inputs, parameters, outputs = make_golden.load('attention')
  attention = attention_module()
  set_parameters(attention, parameters)
  tokens = Tokens(
    values=jnp.asarray(inputs['key']), time=jnp.asarray(inputs['key_time']), valid=jnp.asarray(inputs['key_valid'])
  )

  def run(query, query_time):
    sources = [(tokens, KeyValueReader(None, None, attention))]
    q = attention.project_queries(query, None)
    return attention.merge_heads(read(q, sources, query_time=query_time, chunk_size=chunk_size))

  output = compiled(run, jnp.asarray(inputs['query']), jnp.asarray(inputs['query_time']))
  assert_close(output, outputs['output'], GOLDEN)


def test_several_sources_share_one_softmax():
  (_, _, _), masks = operands(batch=2)
  attention = attention_module()
  random = np.random.default_rng(3)
  values = jnp.asarray(random.normal(size=(2, KEYS, make_golden.INPUT_CHANNELS)), jnp.float32)
  q = jnp.asarray(random.normal(size=(2, make_golden.HEADS, QUERIES, 6)), jnp.float32)
  reader = KeyValueReader(None, None, attention)
  whole = Tokens(values=values, time=masks['key_time'], valid=masks['key_valid'])
  parts = [jax.tree.map(lambda leaf: leaf[:, :4], whole), jax.tree.map(lambda leaf: leaf[:, 4:], whole)]
  for chunk_size in (None, 3):
    asked = functools.partial(read, query_time=masks['query_time'], chunk_size=chunk_size)
    one = compiled(lambda q, whole, asked=asked: asked(q, [(whole, reader)]), q, whole)
    two = compiled(lambda q, parts, asked=asked: asked(q, [(part, reader) for part in parts]), q, parts)
    assert_close(two, one, STREAMED)
  with pytest.raises(ValueError, match='1 of 2 do'):
    timeless = Tokens(values=parts[0].values)
    read(q, [(timeless, reader), (parts[1], reader)], query_time=masks['query_time'])


@pytest.mark.parametrize('width', ['qk_channels', 'v_channels'])
def test_widths_must_split_into_heads(width):
  with pytest.raises(ValueError, match=rf'{width} must be a multiple of num_heads = 2; got 5'):
    attention_module(**{width: 5})
