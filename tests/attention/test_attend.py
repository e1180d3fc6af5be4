"""The rule by gradients, every form = the reference in values and gradients, masked rows, NaN, golden arrays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_lib.attention.attend import (
  DENSE_LOGITS,
  Attention,
  KeyValueReader,
  attend,
  choose_chunk_size,
  read,
  reference_attend,
)
from perceiver_lib.attention.caching import attend_cache, with_room
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


def by_reference(q, k, v, query_time=None, key_time=None, key_valid=None):
  allowed = may_attend(query_time, key_time, key_valid)
  return reference_attend(q, k, v, jnp.ones((len(k), 1, k.shape[2]), bool) if allowed is None else allowed)


def from_cache(q, k, v, key_valid):
  """Each query by itself over a cache with room for two more tokens."""
  cached, valid = with_room(k, v, 2), jnp.pad(key_valid, ((0, 0), (0, 2)))
  return jnp.concatenate([attend_cache(q[:, :, i : i + 1], cached, valid) for i in range(q.shape[2])], axis=2)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(form, arrays, cotangent, masks):
  output, pull_back = jax.vjp(functools.partial(form, **masks), *arrays)
  return output, pull_back(cotangent)


dense = functools.partial(attend, chunk_size=None)
in_chunks = {size: functools.partial(attend, chunk_size=size) for size in (1, 4, 7, 8, 13, 29)}


# Each is compiled once, whatever the seeds: a single key, fewer keys than a chunk, chunks that fit and that do not.
# Prefix read, grouped and block-causal attention have other arguments: their equality stands in their own files.
@settings(max_examples=24, deadline=None)
@given(
  seed=st.integers(0, 2**16),
  how=st.sampled_from(
    [
      ((1, 1, 1, 1), 1, ('time', 'valid')),
      ((2, 3, 5, 13), 4, ('time', 'valid')),
      ((2, 3, 5, 13), 13, ('time',)),
      ((3, 2, 7, 23), 1, ('valid',)),
      ((3, 2, 7, 23), 8, ('time', 'valid')),
      ((1, 3, 6, 22), 29, ('time',)),
      ((3, 1, 2, 16), 4, ()),
      ((2, 2, 4, 9), 7, ()),
    ]
  ),
)
def test_dense_streamed_and_cached_attention_equal_the_reference_in_values_and_gradients(seed, how):
  shape, chunk_size, given_masks = how
  arrays, masks = operands(seed, *shape)
  kept = {name: mask for name, mask in masks.items() if name.split('_')[1] in given_masks}
  if given_masks == ('valid',):
    kept['key_valid'] = kept['key_valid'].at[:, 0].set(True)  # a cache holds the newest token itself
  cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=(*shape[:3], V)), jnp.float32)
  expected = value_and_gradients(by_reference, arrays, cotangent, kept)
  for form in (dense, in_chunks[chunk_size], *([from_cache] if given_masks == ('valid',) else [])):
    assert_close(value_and_gradients(form, arrays, cotangent, kept), expected, STREAMED)


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
