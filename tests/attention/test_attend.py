"""The rule by gradients, NaN, golden arrays, refusals; that every form equals the reference is in `test_matrix`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.attention.attend import DENSE_LOGITS, attend, choose_chunk_size, read
from perceiver_lib.attention.projections import Attention, KeyValueReader
from perceiver_lib.tokens import Tokens, may_attend
from tests.reference import make_golden
from tests.support import GOLDEN, as_users_call, assert_close, compiled, set_parameters

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


def test_all_sources_carry_time_or_none_does():
  (q, _, _), masks = operands(heads=make_golden.HEADS)
  reader = KeyValueReader(None, None, attention_module())
  timed, timeless = (
    Tokens(values=jnp.zeros((BATCH, KEYS, make_golden.INPUT_CHANNELS)), time=time) for time in (masks['key_time'], None)
  )
  with pytest.raises(ValueError, match='1 of 2 do'):
    read(q, [(timeless, reader), (timed, reader)], query_time=masks['query_time'])


@pytest.mark.parametrize('width', ['qk_channels', 'v_channels'])
def test_widths_must_split_into_heads(width):
  with pytest.raises(ValueError, match=rf'{width} must be a multiple of num_heads = 2; got 5'):
    attention_module(**{width: 5})
