"""Pre-processing restated pixel by pixel; tiles cover every pixel and never change an answer that has no borders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.modalities.optical_flow import (
  ReadFlow,
  border_distance,
  flow_from_outputs,
  flow_inputs,
  neighbourhoods,
  normalise,
  standardised,
  tile_starts,
  tiled_flow,
  warp,
)
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from tests.support import assert_close, compiled


@pytest.fixture
def frames():
  return np.random.default_rng(0).integers(0, 256, (2, 2, 5, 7, 3), dtype=np.uint8)


def test_inputs_are_both_neighbourhoods_in_order(frames):
  inputs = np.asarray(flow_inputs(frames))
  assert inputs.shape == (2, 35, 54)
  for b, y, x in ((0, 0, 0), (1, 2, 3), (1, 4, 6)):
    expected = []
    for t in range(2):
      for row in (y - 1, y, y + 1):
        for column in (x - 1, x, x + 1):
          for channel in range(3):
            inside = 0 <= row < 5 and 0 <= column < 7
            expected.append(frames[b, t, row, column, channel] / 255 * 2 - 1 if inside else 0)
    np.testing.assert_allclose(inputs[b, y * 7 + x], expected, atol=1e-6)


def test_normalise_ends():
  np.testing.assert_array_equal(normalise(np.array([0, 255], np.uint8)), [-1, 1])
  assert normalise(np.array([127.5], np.float32))[0] == 0


def test_outputs_are_a_hundredth_of_twenty_pixels():
  outputs = np.arange(30, dtype=np.float32).reshape(1, 15, 2)
  flow = flow_from_outputs(outputs, 3, 5)
  assert flow.shape == (1, 3, 5, 2)
  np.testing.assert_allclose(flow[0, 2, 4], np.array([28, 29]) / 100 * 20, rtol=1e-6)
  with pytest.raises(ValueError, match=r'\[batch, 20, 2\].*\(1, 15, 2\)'):
    flow_from_outputs(outputs, 4, 5)


def test_frames_smaller_than_a_neighbourhood_are_refused():
  with pytest.raises(ValueError, match='got frames of 2 x 9'):
    neighbourhoods(np.zeros((1, 2, 2, 9, 3), np.float32))


def test_warp_reads_where_the_flow_points():
  image = np.arange(35, dtype=np.float32).reshape(5, 7, 1)
  flow = np.zeros((5, 7, 2), np.float32)
  flow[..., 0], flow[..., 1] = 1, 0.5
  warped = np.asarray(warp(image, flow))
  assert warped[1, 2, 0] == (image[1, 3, 0] + image[2, 3, 0]) / 2
  assert warped[4, 6, 0] == image[4, 6, 0]


def test_sintel_has_six_tiles():
  assert tile_starts(436, 368, 20).tolist() == [0, 68]
  assert tile_starts(1024, 496, 20).tolist() == [0, 264, 528]
  assert tile_starts(368, 368, 20).tolist() == [0]
  assert tile_starts(100, 368, 20).tolist() == [0]


@pytest.mark.parametrize('length', range(23, 90))
def test_tiles_cover_overlap_and_end_flush(length):
  starts = tile_starts(length, 23, 5)
  assert starts[0] == 0 and starts[-1] == length - 23
  assert (np.diff(starts) <= 23 - 5).all() and (np.diff(starts) > 0).all()


def test_border_distance():
  np.testing.assert_array_equal(border_distance(3, 5), [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize('shape', [(11, 13), (29, 31), (11, 40), (5, 7), (3, 41), (12, 13)])
@pytest.mark.parametrize('batch_size', [1, 3])
def test_tiling_does_not_change_a_pointwise_answer(shape, batch_size):
  frames = np.random.default_rng(1).random((2, *shape, 3), dtype=np.float32)
  sizes = []

  def predict(tiles):
    sizes.append(tiles.shape)
    return tiles[:, 0, :, :, :2] - 3 * tiles[:, 1, :, :, :2]

  flow = tiled_flow(predict, frames, tile=(11, 13), overlap=4, batch_size=batch_size)
  np.testing.assert_allclose(flow, frames[0, ..., :2] - 3 * frames[1, ..., :2], atol=1e-5)
  assert set(sizes) == {(batch_size, 2, 11, 13, 3)}


def test_blend_weighs_by_distance_to_the_border():
  """Two tiles of width 5 over 7 pixels answer 0 and 1: between them the weights are those of border_distance."""
  frames = np.zeros((2, 9, 7, 3), np.float32)
  frames[:, :, 2:] += np.arange(5)[None, None, :, None]
  answers = iter([0.0, 1.0])
  flow = tiled_flow(lambda tiles: np.full((1, 9, 5, 2), next(answers), np.float32), frames, tile=(9, 5), overlap=3)
  # Row 4, columns 0-6: weights of the left tile 1 2 3 2 1, of the right one the same from column 2.
  np.testing.assert_allclose(flow[4, :, 0], [0, 0, 1 / 4, 2 / 4, 3 / 4, 1, 1], atol=1e-6)


def test_bad_tiling_is_refused():
  frames = np.zeros((2, 9, 9, 3), np.float32)
  with pytest.raises(ValueError, match=r'\(1, 9, 9, 3\)'):
    tiled_flow(lambda tiles: tiles, frames[:1])
  with pytest.raises(ValueError, match='3 x 3'):
    tiled_flow(lambda tiles: tiles, frames[:, :2])
  with pytest.raises(ValueError, match='got 9'):
    tiled_flow(lambda tiles: tiles, frames, tile=(9, 11), overlap=9)
  with pytest.raises(ValueError, match='at least 1 tile'):
    tiled_flow(lambda tiles: tiles, frames, tile=(9, 11), overlap=4, batch_size=0)
  with pytest.raises(ValueError, match=r'Expected a prediction \(1, 9, 11, 2\)'):
    tiled_flow(lambda tiles: tiles[:, 0], frames, tile=(9, 11), overlap=4)


def test_inputs_compile(frames):
  np.testing.assert_allclose(jax.jit(flow_inputs)(frames), flow_inputs(frames), atol=1e-6)


def small_model(**changes):
  settings = {'image_shape': (8, 8), 'num_latents': 5, 'num_latent_channels': 12, 'num_self_attends': 1}
  return PerceiverIO(PerceiverIOConfig.optical_flow(num_heads=2, num_bands=3, **settings | changes), rngs=nnx.Rngs(0))


@pytest.fixture
def pairs():
  return np.random.default_rng(1).uniform(0, 255, (3, 2, 8, 8, 3)).astype(np.float32)


def test_some_pixels_are_rows_of_all_pixels_and_come_from_the_latents(pairs):
  read, rows = ReadFlow(), np.array([3, 60, 17])

  def answers(model):
    batch = {'frames': pairs}
    foreign = read.with_foreign_latents(model, batch)
    return read(model, batch), foreign, read.at(model, pairs, rows), read.outputs(model, pairs, rows)

  pairs[2] = pairs[0]
  start = small_model()
  flow, foreign, some, outputs = compiled(answers, filled(start, scale=0.3))
  assert flow.shape == (3, 8, 8, 2) and some.shape == (3, 3, 2) and float(jnp.abs(flow).max()) > 0.1
  assert_close(some, flow.reshape(3, 64, 2)[:, rows])
  assert_close(foreign[2], flow[2])  # two places before it stands the same pair
  assert float(jnp.abs(foreign[1] - flow[1]).max()) > 1e-3
  # A unit of output is 20 published ones, and those are 0.2 pixels.
  assert_close(some, 20 * 0.2 * outputs)
  np.testing.assert_array_equal(start.decoder.output.kernel[...], 0)  # untrained: nothing moves


def test_brightness_and_contrast_do_not_matter(pairs):
  plain, changed = standardised(pairs), standardised(0.5 * pairs + 40)
  np.testing.assert_allclose(np.mean(plain, axis=(1, 2, 3, 4)), 127.5, atol=0.05)
  np.testing.assert_allclose(np.std(plain, axis=(1, 2, 3, 4)), 127.5, rtol=0.25)
  # Pairs of almost one grey are not blown up, so a contrast below the 4 grey levels that guard it is damped.
  spread = np.std(pairs, axis=(1, 2, 3, 4), keepdims=True)
  np.testing.assert_allclose(changed - 127.5, (spread + 4) / (spread + 8) * (plain - 127.5), atol=0.05)


def test_latents_see_every_pixel_of_every_second_row_and_column():
  read, numbers = ReadFlow(), np.arange(128)
  frames = np.broadcast_to(numbers.reshape(1, 2, 8, 8, 1), (1, 2, 8, 8, 3)).astype(np.uint8)
  whole = Tokens(values=flow_inputs(frames), position=read.inputs(frames).position)
  seen = read.seen(whole, 8, 8)
  assert 4 * seen.num_tokens == whole.num_tokens
  assert set(numbers) <= set(np.rint((np.asarray(seen.values).ravel() + 1) * 127.5))
