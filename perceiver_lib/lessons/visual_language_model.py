"""Notebook 12: captions as bytes, other readers of a scene, rules without training, and where a word looks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from perceiver_lib.adapters import AdapterConfig
from perceiver_lib.attention.capture import AttentionMap, capture_attention
from perceiver_lib.baselines.images import SmallCNN
from perceiver_lib.blocks import MLP, LayerConfig, layer_norm
from perceiver_lib.data.digit_scenes import CELL, DIGIT, EMPTY, NUMBERS, SIDE, batches, caption, said_of
from perceiver_lib.data.loading import ArraySource, evaluation_batches
from perceiver_lib.modalities.text import BOS, EOS, NUM_SPECIAL, PAD, ByteTokenizer
from perceiver_lib.models.visual_language import VisualLanguageModel
from perceiver_lib.positions import grid
from perceiver_lib.tokens import AnyArray, Tokens
from perceiver_lib.training.metrics import evaluate_dataset, predict
from perceiver_lib.training.sequences import NextTokens, latent_targets, next_tokens

PATCH = 8
"""Pixels along the side of what one token of a scene is about."""

Batch = Mapping[str, AnyArray]


class Eyes(nnx.Module):
  """A vision network, and behind it what makes visual tokens of its features, such as a `Resampler`."""

  def __init__(self, vision: SmallCNN, reader: nnx.Module):
    self.vision, self.reader = vision, reader

  def __call__(self, images: UInt8[Array, 'b y x']) -> Tokens:
    return self.reader(self.look(images))

  def look(self, images: UInt8[Array, 'b y x']) -> Tokens:
    """A token for each 8 x 8 pixels of a canvas, with its place in [-1, 1]; every vector of mean 0 and variance 1.

    Raw features are many times larger than positions, which a norm over both would drown.
    """
    features = jax.nn.standardize(self.vision.features(images[..., None] / jnp.float32(255)))
    position = jnp.asarray(grid(features.shape[1:3]))[None]
    return Tokens(values=rearrange(features, 'b y x c -> b (y x) c'), position=position)


def shifted(batch: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
  """A transform for batches of single pictures, 28 x 28: each at a random corner of a place of 32 x 32."""
  image = np.zeros((len(batch['image']), CELL, CELL, 1), np.uint8)
  for row, (y, x) in enumerate(random.integers(0, CELL - DIGIT + 1, (len(image), 2))):
    image[row, y : y + DIGIT, x : x + DIGIT] = batch['image'][row]
  return batch | {'image': image}


def caption_examples(batch: Batch) -> NextTokens:
  """The captions `[b, l]` as ids behind a begin token, an end token behind them."""
  said = jnp.pad(batch['caption'].astype(jnp.int32), ((0, 0), (0, 1)))
  ids = jnp.where(said > 0, said + NUM_SPECIAL, PAD)
  end = jnp.arange(said.shape[1])[None] == (said > 0).sum(1, keepdims=True)
  ids = jnp.where(end, EOS, ids)
  return next_tokens(ids, valid=ids != PAD, begin_token=BOS)


Seen = Callable[[Batch], Array | None]
"""What a model is shown of a batch."""


def own(batch: Batch) -> UInt8[Array, 'b y x']:
  """A `Seen`: the scene that the caption is of."""
  return batch['image']


def foreign(batch: Batch) -> UInt8[Array, 'b y x']:
  """A `Seen`: the scene of the next caption."""
  return jnp.roll(batch['image'], 1, axis=0)


def nothing(batch: Batch) -> None:
  """A `Seen`: no scene."""


def score(model: VisualLanguageModel, source: ArraySource, seen: Seen = own, *, batch_size: int = 64) -> dict:
  """Percent of captions without a wrong byte: 'exact', and '1' to '4' by the number of digits; 'nats' a byte.

  A caption is counted as right if every byte, given the right ones before it, is the likeliest. Just then writing it
  greedily gives it too.
  """
  return evaluate_dataset(model, _metrics(seen), evaluation_batches(source, batch_size))


@functools.cache
def _metrics(seen: Seen) -> Callable:
  def metrics(model: VisualLanguageModel, batch: Batch) -> dict[str, tuple[Array, Array]]:
    examples = caption_examples(batch)
    logits = model(examples.inputs, seen(batch))
    targets, scored = latent_targets(examples, logits)
    right = 100.0 * ((logits.values.argmax(-1) == targets) | ~scored).all(1)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits.values), targets[..., None], axis=-1)[..., 0]
    count = (batch['places'] != EMPTY).sum(1)
    kinds = {str(number): (right, count == number) for number in (1, 2, 3, 4)}
    return {'exact': (right, jnp.ones_like(right)), 'nats': (nats, scored)} | kinds

  return metrics


def write(model: VisualLanguageModel, images: UInt8[np.ndarray, 'b y x'], *, seen: Seen = own) -> list[str]:
  """Captions, byte after byte, always the likeliest."""
  ids = np.asarray(_write(nnx.split(model), {'image': jnp.asarray(images)}, seen))
  return [ByteTokenizer().decode(row[: int(np.argmax(row == EOS))] if EOS in row else row) for row in ids]


@functools.partial(jax.jit, static_argnames='seen')
def _write(parts: tuple[Any, Any], batch: Batch, seen: Seen) -> Int[Array, 'b l']:
  model = nnx.merge(*parts)
  length = model.language_model.config.num_latents
  images = seen(batch)
  visual = None if images is None else model.resampler(images)

  def append(text: Array, place: Array) -> tuple[Array, None]:
    logits = model.answer(Tokens(values=text), visual).values[:, place]
    return text.at[:, place + 1].set(logits.argmax(-1).astype(jnp.int32), mode='drop'), None

  # One place more than the model reads, for its last byte; everything is causal, so what stands behind does not matter.
  text = jnp.full((len(batch['image']), length), BOS, jnp.int32)
  return jax.lax.scan(append, text, jnp.arange(length))[0][:, 1:]


class Averages(nnx.Module):
  """In place of a resampler: every token through an MLP, and all of them, or the means of square tiles.

  Args:
    tiles: along each side of the canvas, None = every token is a visual token.
  """

  def __init__(self, adapter: AdapterConfig, layer: LayerConfig, *, tiles: int | None, rngs: nnx.Rngs):
    self.input_adapter, self.tiles = adapter.build(rngs), tiles
    self.norm = layer_norm(adapter.num_channels, rngs)
    self.mlp = MLP(adapter.num_channels, layer, rngs=rngs)

  def __call__(self, inputs: Tokens) -> Tokens:
    channels = self.input_adapter(inputs)
    channels = channels + self.mlp(self.norm(channels))
    if self.tiles is not None:
      side, tiles = round(inputs.num_tokens**0.5), self.tiles
      channels = rearrange(channels, 'b (y x) d -> b y x d', y=side)
      channels = reduce(channels, 'b (s y) (t x) d -> b (s t) d', 'mean', s=tiles, t=tiles)
    return Tokens(values=channels)


def gates(model: VisualLanguageModel) -> dict[str, float]:
  """tanh of every gate by name, 0 = closed."""
  return {
    f'{name}, layer {index}': float(jnp.tanh(gate[...]))
    for index, layer in enumerate(model.gated)
    for name, gate in (('attention', layer.attention_gate), ('MLP', layer.mlp_gate))
  }


def with_closed_gates(model: VisualLanguageModel) -> VisualLanguageModel:
  """A copy whose gates are zero."""
  model = nnx.clone(model)
  for layer in model.gated:
    layer.attention_gate[...] = layer.mlp_gate[...] = jnp.zeros(())
  return model


def nearest_scene(pictures: ArraySource, source: ArraySource, *, num_scenes: int, seed: int) -> float:
  """Percent of captions right by taking that of the nearest of new training scenes, pixel by pixel."""
  stock, arrays = next(batches(pictures, num_scenes, seed=seed)(0)), source.arrays
  flat = [images.reshape(len(images), -1) / 255.0 for images in (stock['image'], arrays['image'])]
  return float(100 * (stock['caption'][_nearest(*flat)] == arrays['caption']).all(1).mean())


def told_the_grammar(source: ArraySource, name: Callable[[np.ndarray], np.ndarray]) -> float:
  """Percent of captions right for one who knows the four places and the grammar, and only has to name single digits.

  Args:
    name: pictures of places uint8 `[k, 32, 32]` -> digits `[k]`.
  """
  cells = rearrange(source.arrays['image'], 'n (r y) (s x) -> (n r s) y x', r=2, s=2)
  seen, places = cells.any((1, 2)), np.full(len(cells), EMPTY)
  places[seen] = name(cells[seen])
  pairs = zip(places.reshape(-1, 4).tolist(), source.arrays['places'].tolist(), strict=True)
  return float(100 * np.mean([caption(found) == caption(truth) for found, truth in pairs]))


def nearest_digit(pictures: ArraySource) -> Callable[[np.ndarray], np.ndarray]:
  """Names digits by the nearest training picture, both centred."""
  flat = np.stack([_centred(image) for image in pictures.arrays['image'][..., 0]])
  return lambda cells: pictures.arrays['label'][_nearest(flat, np.stack([_centred(cell) for cell in cells]))]


def named_by(vision: SmallCNN) -> Callable[[np.ndarray], np.ndarray]:
  """Names digits by the vision network's own head."""
  look = jax.jit(lambda vision, cells: vision(cells[..., None] / jnp.float32(255)).argmax(-1))
  return lambda cells: np.asarray(look(vision, jnp.asarray(cells)))


def _nearest(stock: Float[np.ndarray, 's p'], asked: Float[np.ndarray, 'k p']) -> Int[np.ndarray, 'k']:
  from sklearn.neighbors import NearestNeighbors

  return NearestNeighbors(n_neighbors=1).fit(stock).kneighbors(asked, return_distance=False)[:, 0]


def _centred(image: UInt8[np.ndarray, 'y x']) -> Float[np.ndarray, 'p']:
  """The 28 x 28 pixels around the centre of mass, flat."""
  mass = image / image.sum()
  y, x = (round(float((mass.sum(1 - axis) * np.arange(size)).sum())) for axis, size in enumerate(image.shape))
  padded = np.pad(image, DIGIT // 2)
  return padded[y : y + DIGIT, x : x + DIGIT].reshape(-1) / 255.0


def swapped(source: ArraySource) -> ArraySource:
  """The same pictures with left and right places exchanged, and the captions that are then true."""
  arrays = source.arrays
  order = np.array([1, 0, 3, 2])
  places = arrays['places'][:, order]
  corner = arrays['corner'][:, order] + np.array([[0, -CELL], [0, CELL]] * 2)
  image = np.roll(arrays['image'], CELL, axis=2)
  return ArraySource({'image': image, 'caption': said_of(places), 'places': places, 'corner': corner})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
  """Scenes of one digit beside others of another kind, in captions that name the single one first.

  Attributes:
    batch: 'image' and 'caption'.
    start: the place of its name's first byte, `[b]`.
    names: its name.
    own, other: the tokens `[b, y, x]` that it covers, and those that the others cover.
  """

  batch: dict[str, np.ndarray]
  start: Int[np.ndarray, 'b']
  names: list[str]
  own: Bool[np.ndarray, 'b y x']
  other: Bool[np.ndarray, 'b y x']


def first_words(source: ArraySource, count: int) -> Words:
  """The first `count` such scenes."""
  arrays = source.arrays
  said = [bytes(row).rstrip(b'\0').decode() for row in arrays['caption']]
  rows = [row for row, text in enumerate(said) if text.split()[0] in ('a', 'an') and ' at ' not in text][:count]
  start, names, covered = [], [], np.zeros((2, len(rows), SIDE // PATCH, SIDE // PATCH), bool)
  for number, row in enumerate(rows):
    digit = NUMBERS.index(said[row].split()[1])
    names.append(NUMBERS[digit])
    start.append(said[row].index(' ') + 1)
    for place, (y, x) in zip(arrays['places'][row], arrays['corner'][row], strict=True):
      if place != EMPTY:
        box = slice(y // PATCH, -(-(y + DIGIT) // PATCH)), slice(x // PATCH, -(-(x + DIGIT) // PATCH))
        covered[int(place != digit), number][box] = True
  batch = {name: arrays[name][rows] for name in ('image', 'caption')}
  return Words(batch=batch, start=np.array(start), names=names, own=covered[0], other=covered[1])


def attention_of_words(model: VisualLanguageModel, words: Words) -> Float[np.ndarray, 'l b y x']:
  """How much of a token of the scene is in what the word's query reads, by gated layer; every map sums to one.

  The query's attention to the visual tokens, times that of these to the scene's tokens, through all layers of the
  resampler: a layer's latents hold half themselves (the residual), half what they read.
  """
  return np.asarray(_attention(nnx.split(model), words.batch, jnp.asarray(words.start)))


@jax.jit
def _attention(parts: tuple[Any, Any], batch: Batch, start: Int[Array, 'b']) -> Float[Array, 'l b y x']:
  model, examples = nnx.merge(*parts), caption_examples(batch)
  logits, maps = capture_attention(model)(examples.inputs, own(batch))
  reads = _patches_in_latents([found for name, found in maps.items() if name.startswith('resampler')])
  asks = (logits.time == start[:, None]).argmax(1)
  gated = jnp.stack([found.weights.mean(1) for name, found in maps.items() if name.startswith('gated')])
  query = jnp.take_along_axis(gated, asks[None, :, None, None], axis=2)[:, :, 0]
  mixed = jnp.einsum('lbn,bnm->lbm', query, reads)
  side = SIDE // PATCH
  return rearrange(mixed / mixed.sum(-1, keepdims=True), 'l b (y x) -> l b y x', y=side)


def _patches_in_latents(layers: list[AttentionMap]) -> Float[Array, 'b n m']:
  weights = [found.weights.mean(1) for found in layers]
  b, n, keys = weights[0].shape
  reads = jnp.zeros((b, n, keys - n))
  for read in weights:
    reads = 0.5 * reads + 0.5 * (read[..., : keys - n] + jnp.einsum('bij,bjm->bim', read[..., keys - n :], reads))
  return reads


def hidden_of_words(model: VisualLanguageModel, words: Words) -> Float[np.ndarray, 'b y x']:
  """What the word's first byte loses in log-probability when the pixels of a token are black; every map sums to one.

  Gains count as nothing. A map of zeros, where nothing matters, is divided evenly.
  """
  steps = SIDE // PATCH
  whole = {'image': words.batch['image'], 'caption': words.batch['caption'], 'start': words.start}
  rows = [whole]
  for y in range(steps):
    for x in range(steps):
      image = whole['image'].copy()
      image[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] = 0
      rows.append(whole | {'image': image})
  told = predict(model, _first_byte, rows).reshape(len(rows), -1)
  lost = np.maximum(told[0] - told[1:], 0) + 1e-9
  maps = rearrange(lost / lost.sum(0), '(y x) b -> b y x', y=steps)
  return maps


def _first_byte(model: VisualLanguageModel, batch: Batch) -> Float[Array, 'b']:
  examples = caption_examples(batch)
  logits = model(examples.inputs, own(batch))
  targets, _ = latent_targets(examples, logits)
  told = jnp.take_along_axis(jax.nn.log_softmax(logits.values), targets[..., None], axis=-1)[..., 0]
  return jnp.where(logits.time == batch['start'][:, None], told, 0).sum(1)


def mass(maps: Float[np.ndarray, '*l b y x'], covered: Bool[np.ndarray, 'b y x']) -> float:
  """Mean share of the maps that lies on the covered patches."""
  return float((maps * covered).sum((-2, -1)).mean())
