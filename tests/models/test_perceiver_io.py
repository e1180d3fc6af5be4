from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.convolution import ConvolutionConfig
from perceiver_lib.models.perceiver import Perceiver, PerceiverConfig
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.parameters import abstract
from perceiver_lib.positions import FourierFeatures, grid
from perceiver_lib.queries import InputQueries, LearnedQueries, PositionQueries, position_queries
from perceiver_lib.tokens import Tokens
from tests.reference import make_golden
from tests.support import GOLDEN, STREAMED, GivenQueries, as_users_call, assert_close, compiled, renamed, set_parameters

FOURIER = FourierFeatures(num_bands=3, max_resolution=(5, 7))
FEATURES = FeatureAdapterConfig(num_values=3, position=FOURIER)
RANDOM = np.random.default_rng(0)
PIXELS = Tokens(
  values=jnp.asarray(RANDOM.normal(size=(2, 35, 3)), jnp.float32), position=jnp.asarray(grid((5, 7)))[None]
)


def tiny(queries, input_adapter=FEATURES, num_outputs=3, **decoder) -> PerceiverIO:
  decoder = DecoderConfig(queries=queries, num_outputs=num_outputs, **decoder)
  return PerceiverIO(PerceiverIOConfig.tiny(input_adapter, decoder), rngs=nnx.Rngs(0))


BY_POSITION = tiny(PositionQueries(position=FOURIER))
BY_INPUT = tiny(InputQueries(), cross_attend=LayerConfig(num_heads=1, query_residual=False))
BY_TASK = tiny(LearnedQueries(num_queries=5, num_channels=6))


@functools.cache
def latents_by_position() -> Tokens:
  return compiled(BY_POSITION.encode, PIXELS)


@pytest.mark.parametrize('query_residual', [True, False])
def test_golden_perceiver_io(query_residual):
  inputs, parameters, outputs = make_golden.load('perceiver_io')
  widths = {'qk_channels': make_golden.QK_CHANNELS, 'v_channels': make_golden.V_CHANNELS}
  config = PerceiverIOConfig(
    input_adapter=FeatureAdapterConfig(num_values=make_golden.INPUT_CHANNELS),
    num_latents=make_golden.LATENTS,
    num_latent_channels=make_golden.LATENT_CHANNELS,
    num_blocks=2,
    num_self_attends_per_block=2,
    cross_attend=LayerConfig(num_heads=1, **widths),
    self_attend=LayerConfig(num_heads=make_golden.HEADS, **widths),
    decoder=DecoderConfig(
      queries=GivenQueries(num_channels=make_golden.QUERY_CHANNELS),
      num_outputs=make_golden.OUTPUTS,
      cross_attend=LayerConfig(num_heads=make_golden.HEADS, query_residual=query_residual, **widths),
    ),
  )
  model = abstract(PerceiverIO, config)
  set_parameters(model, renamed(parameters))
  tokens = Tokens(values=jnp.asarray(inputs['inputs']), valid=jnp.asarray(inputs['valid']))
  latents = compiled(model.encode, tokens)
  assert_close(latents.values, outputs['latents'], GOLDEN)
  expected = outputs['with_residual' if query_residual else 'without_residual']
  for chunk_size in (None, 3):
    decoded = compiled(model.decode, latents, Tokens(values=jnp.asarray(inputs['queries'])), chunk_size=chunk_size)
    assert_close(decoded, expected, GOLDEN)


def test_a_perceiver_with_one_read_is_the_encoder_and_a_mean():
  perceiver = Perceiver(dataclasses.replace(PerceiverConfig.tiny(FEATURES, 3), num_cross_attends=1), rngs=nnx.Rngs(1))
  config = dataclasses.replace(BY_TASK.config, num_blocks=2, num_self_attends_per_block=1)
  model = PerceiverIO(config, rngs=nnx.Rngs(2))
  state = {path: leaf for path, leaf in nnx.to_flat_state(nnx.state(perceiver, nnx.Param)) if path[0] != 'head'}
  own = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)) if path[0] != 'decoder'}
  assert own == set(state)
  nnx.update(model, nnx.from_flat_state(state))
  expected = compiled(lambda pixels: perceiver.head(model.encode(pixels).values.mean(1)), PIXELS)
  assert_close(compiled(perceiver, PIXELS), expected)


@pytest.mark.parametrize('end_points', [True, False])
@pytest.mark.parametrize('chunk_size', [6, 99])
def test_chunks_and_sub_samples_are_rows_of_the_full_decode(end_points, chunk_size):
  latents = latents_by_position()
  position = grid((5, 7), end_points=end_points)
  valid = RANDOM.random((2, 35)) < 0.8
  decode, queries = BY_POSITION.decode, position_queries(position, batch_size=2, valid=valid)
  full = compiled(decode, latents, queries)
  assert_close(compiled(decode, latents, queries, chunk_size=chunk_size), full)
  rows = np.array([34, 3, 17])
  some = compiled(decode, latents, position_queries(position[rows], batch_size=2, valid=valid[:, rows]))
  assert_close(some, full[:, rows])


def test_gradients_of_a_chunked_decode_are_the_gradients():
  def loss(model, chunk_size):
    return jnp.sum(jnp.sin(model(PIXELS, decode_chunk_size=chunk_size)))

  gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)

  def parts(value, gradients):
    """Value and gradients but those of the keys' biases, and these, which are zero: a softmax cancels them."""
    flat = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(gradients, nnx.Param))}
    zero = {path: flat.pop(path) for path in list(flat) if path[-2:] == ('key', 'bias')}
    return (value, flat), np.concatenate(list(zero.values()))

  expected, zero = parts(*gradient(BY_INPUT, None))
  largest = max(np.abs(leaf).max() for leaf in expected[1].values())
  found, also_zero = parts(*gradient(BY_INPUT, 8))
  assert_close(found, expected, STREAMED)
  assert max(np.abs(zero).max(), np.abs(also_zero).max()) <= STREAMED * largest


def test_the_two_grids_ask_different_questions():
  latents = latents_by_position()
  decode = jax.jit(BY_POSITION.decode)
  outputs = [decode(latents, position_queries(grid((5, 7), end_points=end), batch_size=2)) for end in (True, False)]
  assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


by_task = jax.jit(BY_TASK)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), padding=st.sampled_from([0, 5]))
def test_neither_order_nor_padding_of_the_input_matters(seed, padding):
  order = np.random.default_rng(seed).permutation(35 + padding)

  def padded(array, fill):
    garbage = np.full((2, padding, *array.shape[2:]), fill, array.dtype)
    return jnp.asarray(np.concatenate([array, garbage], axis=1)[:, order])

  shuffled = Tokens(
    values=padded(np.asarray(PIXELS.values), np.nan),
    position=padded(np.broadcast_to(PIXELS.position, (2, 35, 2)), np.nan),
    valid=padded(np.ones((2, 35), bool), False),
  )
  assert_close(by_task(shuffled), by_task(PIXELS))


def test_outputs_follow_their_queries():
  order = RANDOM.permutation(35)
  shuffled = Tokens(values=PIXELS.values[:, order], position=PIXELS.position[:, order])
  by_input = jax.jit(BY_INPUT)
  assert_close(by_input(shuffled), by_input(PIXELS)[:, order])
  ids = jnp.array([[4, 1], [0, 4]])
  all_tasks = by_task(PIXELS)
  assert all_tasks.shape == (2, 5, 3)
  some = compiled(lambda pixels, ids: BY_TASK.decode(BY_TASK.encode(pixels), Tokens(values=ids)), PIXELS, ids)
  assert_close(some, jnp.take_along_axis(all_tasks, ids[..., None], axis=1))


def test_invalid_queries_give_zero_and_no_gradient_whatever_they_hold():
  valid = jnp.asarray(RANDOM.random((2, 35)) < 0.5)
  garbage = dataclasses.replace(PIXELS, values=jnp.where(valid[..., None], PIXELS.values, jnp.nan), valid=valid)
  latents = compiled(BY_INPUT.encode, PIXELS)

  def loss(model, queries):
    outputs = model.decode(latents, queries)
    return jnp.sum(jnp.where(valid[..., None], jnp.sin(outputs), outputs)), outputs

  (_, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(BY_INPUT, garbage)
  assert np.all(np.asarray(outputs)[~np.asarray(valid)] == 0)
  assert_close(outputs, jnp.where(valid[..., None], compiled(BY_INPUT.decode, latents, PIXELS), 0.0))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(gradient, nnx.Param)))


def test_queries_read_no_latent_of_later_time():
  """The gradient of each output with respect to each latent is zero exactly where the rule forbids to look."""
  latents = latents_by_position()
  latent_time = jnp.array([[0, 0, 1, 1, 2, 2, 3, 3]] * 2, jnp.int32)
  query_time = jnp.array([[2, 0, -1, 3, 1]] * 2, jnp.int32)
  queries = position_queries(grid((5, 7))[:5], batch_size=2, time=query_time)

  def outputs(values):
    return BY_POSITION.decode(dataclasses.replace(latents, values=values, time=latent_time), queries)[0]

  sensitivity = np.abs(compiled(jax.jacobian(outputs), latents.values))[:, :, 0].sum((1, 3))
  np.testing.assert_array_equal(sensitivity > 0, np.asarray(latent_time[0][None] <= query_time[0][:, None]))
  with pytest.raises(ValueError, match='both carry time'):
    BY_POSITION.decode(latents, queries)


def test_a_tied_output_scores_the_embedding_and_zeros_start_at_zero():
  config = PerceiverIOConfig.masked_language(
    num_latents=4, num_latent_channels=8, num_self_attends=1, num_channels=6, qk_channels=4, num_heads=2, length=11,
    vocabulary_size=13,
  )  # fmt: skip
  model = PerceiverIO(config, rngs=nnx.Rngs(0))
  model.decoder.output.bias[...] = jnp.arange(13.0)
  text = Tokens(values=jnp.asarray(RANDOM.integers(0, 13, (2, 11)), jnp.int32), position=jnp.arange(11)[None, :, None])
  logits = compiled(model, text)
  decoder = dataclasses.replace(config.decoder, output='none', num_outputs=6)
  plain = PerceiverIO(dataclasses.replace(config, decoder=decoder), rngs=nnx.Rngs(0))
  assert_close(logits, compiled(plain, text) @ model.input_adapter.embedding[...].T + jnp.arange(13.0)[None, None])
  assert np.all(np.asarray(compiled(tiny(InputQueries(), output='zeros'), PIXELS)) == 0)


def test_one_decoder_asks_several_modalities():
  queries = ModalityAdaptersConfig(
    modalities=(
      ('image', PositionQueries(position=FOURIER)),
      ('label', LearnedQueries(num_queries=2, num_channels=6)),
    ),
    num_channels=16,
  )
  inputs = ModalityAdaptersConfig(modalities=(('pixels', FEATURES), ('more', FEATURES)), num_channels=19)
  model = tiny(queries, input_adapter=inputs)
  latents = compiled(model.encode, {'pixels': PIXELS, 'more': PIXELS})
  labels = Tokens(values=jnp.array([[0, 1], [1, 0]]))
  queries = {'label': labels, 'image': position_queries(grid((5, 7)), batch_size=2)}
  outputs = compiled(model.decode, latents, queries, chunk_size=9)
  assert {name: array.shape for name, array in outputs.items()} == {'image': (2, 35, 3), 'label': (2, 2, 3)}
  assert_close(compiled(model.decode, latents, {'label': labels})['label'], outputs['label'])
  with pytest.raises(ValueError, match=r"modalities \['image', 'label'\]; got \['sound'\]"):
    model.decode(latents, {'sound': labels})
  with pytest.raises(ValueError, match=r'by modality .*; got tokens without'):
    model.decode(latents, labels)


def test_attention_maps_have_their_names_and_leave_the_outputs_alone():
  outputs, maps = compiled(capture_attention(BY_TASK), PIXELS, decode_chunk_size=2)
  assert sorted(maps) == ['decoder', 'encoder.cross_attention.0', 'processor.0', 'processor.1']
  assert maps['decoder'].weights.shape == (2, 1, 5, 8)
  assert_close(outputs, by_task(PIXELS))


def test_dropout_is_drawn_anew_in_every_chunk_and_only_in_training():
  layer = LayerConfig(num_heads=1, dropout=0.5)
  model = tiny(LearnedQueries(num_queries=4, num_channels=6), cross_attend=layer)
  latents = compiled(model.encode, PIXELS)
  same = Tokens(values=jnp.zeros((2, 4), jnp.int32))
  drawn = compiled(lambda latents: model.decode(latents, same, chunk_size=1, rngs=nnx.Rngs(dropout=0)), latents)
  assert np.abs(np.diff(drawn, axis=1)).max() > 1e-3
  chunked, whole = (compiled(model.decode, latents, same, chunk_size=size) for size in (1, None))
  assert_close(chunked[:, :1], whole[:, 1:2])


def test_convolutions_come_before_the_adapter():
  config = dataclasses.replace(
    PerceiverIOConfig.tiny(
      FeatureAdapterConfig(num_values=4, position=FOURIER),
      DecoderConfig(queries=LearnedQueries(num_queries=1, num_channels=6), num_outputs=3),
    ),
    preprocessor=ConvolutionConfig(image_shape=(8, 8, 3), num_channels=4),
  )
  model = PerceiverIO(config, rngs=nnx.Rngs(0))
  images = Tokens(values=jnp.asarray(RANDOM.normal(size=(2, 64, 3)), jnp.float32))
  _, maps = compiled(capture_attention(model), images)
  assert maps['encoder.cross_attention.0'].weights.shape == (2, 1, 8, 4)
  with pytest.raises(ValueError, match='all pixels of 8 x 8'):
    model(PIXELS)


def test_bad_input_gets_a_sentence():
  empty = dataclasses.replace(PIXELS, valid=jnp.array([[True] * 35, [False] * 35]))
  with pytest.raises(ValueError, match='at least one valid token of its 35; example 1 of 2 has none'):
    BY_TASK(empty)
  assert np.isfinite(jax.jit(lambda valid: BY_TASK(dataclasses.replace(PIXELS, valid=valid)))(empty.valid)).all()
  latents = compiled(BY_TASK.encode, PIXELS)
  with as_users_call(), pytest.raises(ValueError, match=r'inputs.valid must be \[2, 35\].*; got shape \(2, 34\)'):
    BY_TASK(dataclasses.replace(PIXELS, valid=jnp.ones((2, 34), bool)))
  with as_users_call(), pytest.raises(ValueError, match=r'queries.valid must be \[2, 3\].*; got shape \(2, 4\)'):
    BY_TASK.decode(latents, Tokens(values=jnp.zeros((2, 3), jnp.int32), valid=jnp.ones((2, 4), bool)))
  with pytest.raises(ValueError, match='batch size of the latents, 2; got 1'):
    BY_TASK.decode(latents, Tokens(values=jnp.zeros((1, 3), jnp.int32)))
  with pytest.raises(ValueError, match='PositionQueries need output queries'):
    jax.eval_shape(BY_POSITION, PIXELS)
  with pytest.raises(ValueError, match='at least one query; got 0'):
    BY_TASK.decode(latents, Tokens(values=jnp.zeros((2, 3), jnp.int32)), chunk_size=0)


def test_configs_that_cannot_be_built_are_refused():
  with pytest.raises(ValueError, match='as wide as the queries, 6; got 3'):
    tiny(LearnedQueries(num_queries=1, num_channels=6), output='none')
  with pytest.raises(ValueError, match=r'13 ids x 6 channels, .*; got 13 x 5'):
    tiny(
      LearnedQueries(num_queries=1, num_channels=6),
      EmbeddingAdapterConfig(num_embeddings=13, num_channels=5, position=LearnedPositions(shape=(4,), num_channels=5)),
      num_outputs=13,
      output='tied',
    )
  with as_users_call(), pytest.raises(ValueError, match="linear, zeros, tied, none; got 'softmax'"):
    DecoderConfig(queries=InputQueries(), num_outputs=1, output='softmax')
  for preset, value in (('paper_language', 'words'), ('paper_imagenet', 'none'), ('paper_flow', 'medium')):
    with as_users_call(), pytest.raises(ValueError, match=f"got '{value}'"):
      getattr(PerceiverIOConfig, preset)(value)
