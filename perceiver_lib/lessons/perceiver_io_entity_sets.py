"""Notebook 05: units as tokens, orders as pointers into their own set, what orders are worth, and what was read."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perceiver_lib.attention.capture import capture_attention
from perceiver_lib.attention.products import full_float32
from perceiver_lib.attention.rollout import attention_rollout
from perceiver_lib.data.base import Source
from perceiver_lib.data.loading import evaluation_batches
from perceiver_lib.data.skirmish import (
  ATTACK,
  DAMAGE,
  HEALTH,
  KINDS,
  RANGE,
  SIDE,
  Battle,
  Policy,
  Units,
  distances,
  foes,
  legal_orders,
  targets,
  turns,
)
from perceiver_lib.data.skirmish_demonstrations import units_of
from perceiver_lib.experiments.tables import Table
from perceiver_lib.models.perceiver_io import PerceiverIO
from perceiver_lib.tokens import AnyArray, Tokens
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.metrics import correct, evaluate_dataset

NUM_VALUES = 6 + len(KINDS)
"""Numbers that a unit is described by, besides its position."""
POINTER = 16
"""Channels with which a unit asks for its target, and as many with which it answers."""
NUM_OUTPUTS = ATTACK + 2 * POINTER
ILLEGAL = -1e9
"""The logit of an order that cannot be given."""

Read = Callable[[nnx.Module, Tokens], Float[Array, 'b u e']]
"""(model, tokens of the units) -> its outputs for every unit."""


def unit_tokens(units: Units) -> Tokens:
  """A token a unit, whose position is scaled to [-1, 1]; the dead are padding."""
  kind = units.kind
  numbers = (
    units.health / 100 - 0.5,
    2 * units.health / jnp.asarray(HEALTH)[kind] - 1,
    jnp.clip(units.cooldown, -0.1, 2.0),
    1 - 2 * units.team.astype(jnp.float32),
    jnp.asarray(RANGE)[kind] / 4 - 1,
    jnp.asarray(DAMAGE)[kind] / 10 - 1,
  )
  values = jnp.concatenate([jnp.stack(numbers, -1), jax.nn.one_hot(kind, len(KINDS))], -1)
  return Tokens(values=values, position=units.position / (SIDE / 2) - 1, valid=units.alive)


def together(model: nnx.Module, tokens: Tokens) -> Float[Array, 'b u e']:
  """A `Read`: all units of a battle are one set."""
  return model(tokens)


def alone(model: nnx.Module, tokens: Tokens) -> Float[Array, 'b u e']:
  """A `Read`: every unit is a set of its own, so that it knows of nobody else."""
  b = tokens.batch_size
  apart = Tokens(
    values=rearrange(tokens.values, 'b u c -> (b u) 1 c'),
    position=rearrange(tokens.position, 'b u p -> (b u) 1 p'),
    valid=rearrange(tokens.valid, 'b u -> (b u) 1'),
  )
  return rearrange(model(apart), '(b u) 1 e -> b u e', b=b)


def with_foreign_latents(model: PerceiverIO, tokens: Tokens) -> Float[Array, 'b u e']:
  """A `Read`: the units ask the latents half a batch away; what is left, a unit knows by itself."""
  own = model.encode(tokens)
  return model.decode(dataclasses.replace(own, values=jnp.roll(own.values, own.batch_size // 2, axis=0)), tokens)


def order_logits(model: nnx.Module, units: Units, read: Read = together) -> Float[Array, 'b u orders']:
  """Scores of all orders, illegal ones at ILLEGAL.

  Of a unit's outputs five are the scores of its moves, a query and a key the rest. The score of an attack is the
  product of the query of the one and the key of the other, so orders are a set as units are.
  """
  outputs = read(model, unit_tokens(units))
  moves, asks, answers = jnp.split(outputs, [ATTACK, ATTACK + POINTER], axis=-1)
  attacks = jnp.einsum('bik,bjk->bij', asks, answers) / math.sqrt(POINTER)
  return jnp.where(jax.vmap(legal_orders)(units), jnp.concatenate([moves, attacks], -1), ILLEGAL)


def commanded(units: Units) -> Bool[AnyArray, '*b u']:
  """The units whose orders count: the living ones of team 0."""
  return units.alive & (units.team == 0)


@jax.jit
def walking(units: Units) -> Bool[Array, 'b u']:
  """The commanded units that have nobody in range, and so have to move."""
  return commanded(units) & ~jax.vmap(targets)(units).any(-1)


def clone(model: nnx.Module, read: Read = together) -> Policy:
  """A policy: the order with the highest score, for every unit at once."""
  graphdef, state = nnx.split(model)
  return lambda battles, key: _best_orders(graphdef, read)(state, battles.units)


@functools.lru_cache(maxsize=64)
def _best_orders(graphdef: Any, read: Read) -> Callable[[Any, Units], Int[Array, 'b u']]:
  return jax.jit(lambda state, units: order_logits(nnx.merge(graphdef, state), units, read).argmax(-1))


def policy_of(rule: Callable[[Units], Int[Array, 'u']]) -> Policy:
  """A policy from a rule for the units of one battle."""
  compiled = jax.jit(jax.vmap(rule))
  return lambda battles, key: compiled(battles.units)


def score_model(model: nnx.Module, source: Source, read: Read = together, *, batch_size: int = 128) -> dict[str, float]:
  """Percent of the expert's 'orders', 'moves' and 'targets' (where there are several) that are right; 'nats' a unit."""
  return evaluate_dataset(model, _metrics(read), evaluation_batches(source, batch_size))


@functools.cache
def _metrics(read: Read) -> Callable:
  def metrics(model: nnx.Module, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    units, orders = units_of(batch), batch['orders'].astype(jnp.int32)
    logits, counts = order_logits(model, units, read), commanded(units)
    nats = cross_entropy(logits, orders, valid=counts, reduction='none')
    return _by_kind(correct(logits, orders), units, orders) | {'nats': (nats, counts)}

  return metrics


def score_rules(
  rules: Mapping[str, Callable[[Units], Int[Array, 'u']]], source: Source, *, batch_size: int = 128
) -> dict[str, dict[str, float]]:
  """`score_model` for rules by name, without 'nats'."""

  def metrics(model: nnx.Module, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    units, orders = units_of(batch), batch['orders'].astype(jnp.int32)
    found = {}
    for name, rule in rules.items():
      right = (jax.vmap(rule)(units) == orders).astype(jnp.float32)
      found |= {f'{name}/{kind}': pair for kind, pair in _by_kind(right, units, orders).items()}
    return found

  # One program for all of them.
  means = evaluate_dataset(nnx.Module(), metrics, evaluation_batches(source, batch_size))
  return {name: {kind: means[f'{name}/{kind}'] for kind in ('orders', 'moves', 'targets')} for name in rules}


def _by_kind(right: Float[Array, 'b u'], units: Units, orders: Int[Array, 'b u']) -> dict[str, tuple[Array, Array]]:
  counts, several = commanded(units), jax.vmap(targets)(units).sum(-1) > 1
  shoots = orders >= ATTACK
  return {
    'orders': (100 * right, counts),
    'moves': (100 * right, counts & ~shoots),
    'targets': (100 * right, counts & shoots & several),
  }


def standard_error(percent: float, count: int) -> float:
  """Of a share of so many independent trials, both in percent."""
  return math.sqrt(percent * (100 - percent) / count)


def film(policy: Policy, key: Array, *, num_units: int, num_lanes: int) -> dict[str, np.ndarray]:
  """The first battle of the first lane, before each of its orders: arrays of `Units` and 'orders' `[t, u, ...]`."""
  frames = []
  for turn in turns(policy, key, num_units=num_units, num_lanes=num_lanes, num_rounds=1):
    now = {field.name: getattr(turn.battles.units, field.name) for field in dataclasses.fields(Units)}
    frames.append({name: np.asarray(array[0]) for name, array in (now | {'orders': turn.orders}).items()})
    if turn.ended[0]:
      return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


@full_float32()
def exact_differences(model: nnx.Module, units: Units, *, seed: int = 0) -> dict[str, float]:
  """What may not matter: the largest change of a living unit's legal logits, over the largest of them.

  Args:
    units: a batch of one battle with dead units.

  Returns:
    'permuted', when the units come in another order and their orders are put back; 'dead removed', when the dead are
    not in the set; 'NaN in the dead', when their places are NaN, or infinity where it gets through.
  """
  logits = jax.jit(order_logits)
  plain = np.asarray(logits(model, units))[0]
  alive = np.asarray(units.alive[0])
  legal = (plain > ILLEGAL) & alive[:, None]
  order = np.random.default_rng(seed).permutation(len(alive))

  def changed(others: Units, rows: np.ndarray) -> float:
    """`rows` of the plain units, in the order of the others."""
    found = np.asarray(logits(model, others))[0]
    columns = np.concatenate([np.arange(ATTACK), ATTACK + rows])
    expected, counts = plain[np.ix_(rows, columns)], legal[np.ix_(rows, columns)]
    largest = np.abs(np.where(counts, found - expected, 0)).max() / np.abs(plain[legal]).max()
    return float(np.nan_to_num(largest, nan=np.inf))

  def chosen(rows: np.ndarray) -> Units:
    return jax.tree.map(lambda leaf: leaf[:, rows], units)

  unknown = jnp.where(units.alive[..., None], units.position, jnp.nan)
  return {
    'permuted': changed(chosen(order), order),
    'dead removed': changed(chosen(np.flatnonzero(alive)), np.flatnonzero(alive)),
    'NaN in the dead': changed(dataclasses.replace(units, position=unknown), np.arange(len(alive))),
  }


def comparison(rows: Mapping[str, Mapping[str, float]], headings: Mapping[str, str]) -> Table:
  """One row a player, one column a number of it; a dash where it has none.

  Args:
    headings: number -> its heading with a format behind a bar, such as 'orders right (%)|.1f'.
  """
  titles, formats = zip(*(heading.rsplit('|', 1) for heading in headings.values()), strict=True)
  cells = [
    [format(row[name], form) if name in row else '–' for name, form in zip(headings, formats, strict=True)]
    for row in rows.values()
  ]
  return Table(['player', *titles], [[name, *row] for name, row in zip(rows, cells, strict=True)])


def reads(model: nnx.Module, units: Units) -> Float[np.ndarray, 'b u u']:
  """How much of unit j is in the answer to unit i, by the rollout of all attentions; rows of the living sum to 1."""
  return np.asarray(jax.jit(lambda tokens: attention_rollout(capture_attention(model)(tokens)[1]))(unit_tokens(units)))


def remove_a_foe(
  policy: Policy, rule: Callable[[Units], Int[Array, 'u']], units: Units, *, batch_size: int
) -> dict[str, float]:
  """What a unit that walks does when one foe is taken from the field, in percent of such units, one a battle.

  Args:
    rule: the expert's, for which nothing but the nearest foe counts.
    units: a batch of battles; those without a walking unit, or with a single foe, do not count.
    batch_size: battles at a time; it divides them.

  Returns:
    'followed': its order is the expert's new one, where that is changed by taking the nearest foe; 'stayed': its order
    is the old one in these cases; 'farthest': its order is changed by taking the farthest foe.
  """
  ruled, parts = policy_of(rule), []
  for start in range(0, len(units.kind), batch_size):
    part = jax.tree.map(lambda leaf, start=start: leaf[start : start + batch_size], units)
    counts, who, lefts = _without_a_foe(part)
    battles = [Battle(units=left, start=left.position, shot_at=-1 + 0 * left.kind, step=0 * who) for left in lefts]
    rows = np.arange(len(who)), np.asarray(who)
    said = [np.asarray(say(battle, jax.random.key(0)))[rows] for say in (policy, ruled) for battle in battles]
    parts.append([np.asarray(counts), *said])
  counts, own, own_near, own_far, expert, expert_near, _ = (
    np.concatenate(column) for column in zip(*parts, strict=True)
  )
  turned = counts & (expert != expert_near)
  return {
    'followed': 100 * float((own_near == expert_near)[turned].mean()),
    'stayed': 100 * float((own_near == own)[turned].mean()),
    'farthest': 100 * float((own_far != own)[counts].mean()),
  }


@jax.jit
def _without_a_foe(units: Units) -> tuple[Bool[Array, 'b'], Int[Array, 'b'], list[Units]]:
  """Whether a battle counts, the first unit that walks, and the units: all, without its nearest, its farthest foe."""
  _, distance = jax.vmap(distances)(units)
  against = jax.vmap(foes)(units)
  walks = walking(units) & (against.sum(-1) > 1)
  battles, who = jnp.arange(len(walks)), jnp.argmax(walks, -1)
  away, possible = distance[battles, who], against[battles, who]
  gone = jnp.where(possible, away, jnp.inf).argmin(-1), jnp.where(possible, away, -jnp.inf).argmax(-1)
  left = [dataclasses.replace(units, health=units.health.at[battles, foe].set(0.0)) for foe in gone]
  return walks.any(-1), who, [units, *left]
