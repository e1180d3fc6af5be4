"""What notebook 07 asks of models of chorales besides the loss: who knows what, where heads look, a teacher's marks."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.lessons.perceiver_ar_music import MusicRecipe, Pieces, music_config
from perceiver_lib.modalities import music
from perceiver_lib.models.perceiver_ar import PerceiverAR
from perceiver_lib.tokens import Tokens

CHORDS = ({0, 4, 7}, {0, 3, 7}, {0, 3, 6}, {0, 4, 7, 10}, {0, 3, 7, 10}, {0, 4, 7, 11}, {0, 3, 6, 10}, {0, 3, 6, 9})
"""Pitch classes over the root: the major, minor and diminished triad, and the seventh chords of the chorales."""


@functools.partial(nnx.jit, static_argnums=(0, 1))
def random_model(recipe: MusicRecipe, seed: int) -> PerceiverAR:
  """A model in which no weight is zero, so that nothing is hidden behind zeros before training."""
  model = PerceiverAR(music_config(recipe), rngs=nnx.Rngs(seed))
  leaves, structure = jax.tree.flatten(nnx.state(model, nnx.Param))
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
  nnx.update(model, jax.tree.unflatten(structure, moved))
  return model


@functools.partial(nnx.jit, static_argnums=2)
def influence(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Float[Array, 'n m']:
  """How much each embedded input of one sequence moves each latent's logits: gradients of their sum of squares."""

  def energies(embedded: Float[Array, 'b m c']) -> Float[Array, 'n']:
    reader = nnx.clone(model)
    reader.input_adapter = lambda tokens: tokens.values  # so that what has a derivative is the input
    logits = reader(dataclasses.replace(inputs, values=embedded), num_latents=num_latents)
    return jnp.square(logits.values[0]).sum(-1)

  return jnp.abs(jax.jacrev(energies)(model.input_adapter(inputs))[:, 0]).sum(-1)


def long_windows(pieces: Pieces, recipe: MusicRecipe, count: int) -> dict[str, np.ndarray]:
  """The first windows of an evaluation that hold more than twice as many tokens as there are latents."""
  windows = music.evaluation_windows(pieces, recipe.num_steps, stride=recipe.num_latents // music.NUM_VOICES)
  rows = np.flatnonzero(windows['valid'].sum(axis=1) > 2 * recipe.num_latents)[:count]
  return {name: array[rows] for name, array in windows.items()}


def with_shuffled_prefix(inputs: Tokens, num_latents: int, *, seed: int, move_positions: bool) -> Tokens:
  """What stands before the latents, in a random order of storage, with or without its positions."""
  valid = np.asarray(inputs.valid)
  order = np.tile(np.arange(valid.shape[1]), (len(valid), 1))
  for row, exists in zip(order, valid, strict=True):
    prefix = np.flatnonzero(exists)[:-num_latents]
    row[prefix] = np.random.default_rng(seed).permutation(prefix)
  ids, position = np.asarray(inputs.values), np.asarray(inputs.position)
  moved = np.take_along_axis(position, order[..., None], axis=1) if move_positions else position
  return dataclasses.replace(
    inputs, values=jnp.asarray(np.take_along_axis(ids, order, axis=1)), position=jnp.asarray(moved)
  )


@functools.partial(nnx.jit, static_argnums=2)
def read_weights(model: PerceiverAR, inputs: Tokens, num_latents: int) -> Float[Array, 'b h n m']:
  """Attention of the one cross-attend: which inputs each latent reads."""
  _, maps = capture_attention(model)(inputs, num_latents=num_latents)
  return maps['encoder.cross_attention.0'].weights


def look_back(
  weights: Float[np.ndarray, 'b h n m'], position: Int[np.ndarray, 'b m p'], time: Int[np.ndarray, 'b n'], steps: int
) -> Float[np.ndarray, 'h voice steps']:
  """Mean weight of a latent on each voice so many time steps before its own, for each head."""
  b, h = weights.shape[:2]
  at = position[np.arange(b)[:, None], time]
  back = at[:, :, None, 0] - position[:, None, :, 0]
  total = np.zeros((h, music.NUM_VOICES, steps))
  for voice in range(music.NUM_VOICES):
    for ago in range(steps):
      chosen = (back == ago) & (position[:, None, :, 1] == voice)
      total[:, voice, ago] = np.where(chosen[:, None], weights, 0).sum((0, 2, 3)) / time.size
  return total


def counterpoint(scores: Int[np.ndarray, 'b t 4'], step_in_bar: Int[np.ndarray, 'b t']) -> dict[str, float]:
  """What a teacher marks, in percent: chords on the beat, crossed voices, parallel fifths and octaves.

  'chords': beats (even steps of a bar) on which all four voices sound and form a triad or a seventh chord, or a part of
  one. 'crossings': steps at which a voice is above the one that should be higher. 'parallels': motions of two voices in
  the same direction from a fifth (octave) to a fifth (octave), of all steps at which two voices move.
  """
  pitch, _ = music.decode(scores)
  sounds = (pitch >= 0).all(-1)
  beats = (pitch[sounds & (step_in_bar % 2 == 0)] % 12).tolist()
  chords = sum(_is_chord(frozenset(beat)) for beat in beats)
  crossings = (np.diff(pitch[sounds], axis=-1) > 0).any(-1).sum()
  change = np.diff(pitch, axis=1)
  moves, parallels = 0, 0
  for high, low in itertools.combinations(range(music.NUM_VOICES), 2):
    interval = (pitch[..., high] - pitch[..., low]) % 12
    moving = sounds[:, 1:] & sounds[:, :-1] & (change[..., high] != 0) & (change[..., low] != 0)
    together = moving & ((change[..., high] > 0) == (change[..., low] > 0))
    parallels += (together & (interval[:, 1:] == interval[:, :-1]) & np.isin(interval[:, 1:], (0, 7))).sum()
    moves += moving.sum()
  shares = {'chords': (chords, len(beats)), 'crossings': (crossings, sounds.sum()), 'parallels': (parallels, moves)}
  return {name: 100 * float(count) / max(int(total), 1) for name, (count, total) in shares.items()}


@functools.cache
def _is_chord(classes: frozenset[int]) -> bool:
  return any(all((c - root) % 12 in chord for c in classes) for chord in CHORDS for root in range(12))
