"""Demonstrations: what the expert of `skirmish` orders its units, made once and kept, split by whole battles."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_lib.data import skirmish
from perceiver_lib.data.base import DataSet, Provenance, sha256
from perceiver_lib.data.loading import ArraySource, Batch
from perceiver_lib.data.preparation import data_directory, naming_damage
from perceiver_lib.data.skirmish import SIDE, Units, expert, turns
from perceiver_lib.data.splits import filled_by_hash
from perceiver_lib.files import replacing
from perceiver_lib.settings import check_counts

TEST_SHARE = VALIDATION_SHARE = 0.1


def load(
  *,
  num_units: int = 32,
  num_states: int = 32_768,
  num_lanes: int = 64,
  seed: int = 0,
  data_dir: str | os.PathLike | None = None,
) -> DataSet:
  """Demonstrations: the expert fights the built-in bot, 80 / 10 / 10 % of the states by whole battles.

  Each example, u = 2 `num_units`: 'position' float32 `[u, 2]`, 'health', 'cooldown' float32 and 'kind', 'team' int8
  `[u]`, as in `Units`; 'orders' int16 `[u]`, of which those of living units of team 0 are the expert's; 'battle' int32.
  Examples are in the order of time. They are made once and kept by a hash of the code, the settings and JAX's version.

  Args:
    num_units: of one team.
    num_lanes: battles that are fought side by side until there are `num_states` states; the last ones are cut off.
    data_dir: see `preparation.data_directory`.

  Raises:
    ValueError: if states are too few for three splits, or the kept file is damaged.
  """
  settings = {'num_units': num_units, 'num_states': num_states, 'num_lanes': num_lanes}
  check_counts(settings)
  made_by = [
    Path(skirmish.__file__).read_bytes(),
    Path(__file__).read_bytes(),
    repr((settings, seed, jax.__version__, jax.default_backend())).encode(),
  ]
  path = data_directory(data_dir) / 'skirmish' / f'{sha256(made_by)[:16]}.npz'
  if not path.exists():
    with replacing(path) as aside:
      np.savez(aside, **_demonstrations(seed=seed, **settings))
  with naming_damage(path), path.open('rb') as opened, np.load(opened) as file:
    arrays = dict(file)
  won, ended = arrays.pop('won'), arrays.pop('ended')
  names, sizes = np.unique(arrays['battle'], return_counts=True)
  splits = filled_by_hash(
    dict(zip(map(str, names.tolist()), sizes.tolist(), strict=True)), test=TEST_SHARE, validation=VALIDATION_SHARE
  )
  of_example = np.array([splits[str(name)] for name in names])[np.searchsorted(names, arrays['battle'])]
  rows = {split: np.flatnonzero(of_example == split) for split in ('train', 'validation', 'test')}
  if empty := [split for split, part in rows.items() if not len(part)]:
    raise ValueError(f'{num_states} states of {len(names)} battles are too few for three splits: no {empty[0]}.')
  return DataSet(
    **{split: ArraySource({name: array[part] for name, array in arrays.items()}) for split, part in rows.items()},
    provenance=Provenance(
      name=f'skirmishes, {num_units} against {num_units}',
      kind='synthetic',
      source='an expert against the built-in bot, by the rules of SMAX (JaxMARL 0.2.0), written anew in this library',
      licence='Apache-2.0, as SMAX',
      counts={f'{split} states': len(part) for split, part in rows.items()},
      checksum=sha256(arrays[name] for name in sorted(arrays)),
      note=f'{len(names)} battles, each in one split; the expert won {int(won)} of the {int(ended)} that ended',
    ),
  )


def _demonstrations(*, num_units: int, num_states: int, num_lanes: int, seed: int) -> dict[str, np.ndarray]:
  """What `load` keeps, and how many battles were 'won' and 'ended'."""
  follow = jax.jit(lambda battles, key: jax.vmap(expert)(battles.units))
  num_turns = -(-num_states // num_lanes)
  # About five times as many starts as battles of usual length; one that comes again is the same battle to the split.
  rounds = 1 + num_turns // 10
  stream = turns(follow, jax.random.key(seed), num_units=num_units, num_lanes=num_lanes, num_rounds=rounds)
  kept, won, ended = [], 0, 0
  for turn in itertools.islice(stream, num_turns):
    turn = jax.tree.map(np.asarray, turn)
    units = {field.name: getattr(turn.battles.units, field.name) for field in dataclasses.fields(Units)}
    kept.append(units | {'orders': turn.orders, 'battle': turn.number % rounds * num_lanes + np.arange(num_lanes)})
    won, ended = won + (turn.outcome == 1).sum(), ended + turn.ended.sum()
  types = {'kind': np.int8, 'team': np.int8, 'orders': np.int16, 'battle': np.int32}
  arrays = {name: np.concatenate([part[name] for part in kept])[:num_states] for name in kept[0]}
  return {name: array.astype(types.get(name, np.float32)) for name, array in arrays.items()} | {
    'won': np.int64(won),
    'ended': np.int64(ended),
  }


def units_of(batch: Mapping[str, Any]) -> Units:
  """The units of a batch of demonstrations, as those of a battle are."""
  arrays = {field.name: jnp.asarray(batch[field.name]) for field in dataclasses.fields(Units)}
  return Units(**arrays | {name: arrays[name].astype(jnp.int32) for name in ('kind', 'team')})


def mirrored(batch: Batch, random: np.random.Generator) -> Batch:
  """A `loading.Transform`: each field is turned left for right, upside down, both or neither, and the moves with it."""
  position, orders = batch['position'].copy(), batch['orders']
  for axis, (one, other) in enumerate(((1, 3), (0, 2))):
    turned = random.random(len(orders)) < 0.5
    position[turned, :, axis] = np.float32(SIDE) - position[turned, :, axis]
    swapped = np.where(orders == one, np.int16(other), np.where(orders == other, np.int16(one), orders))
    orders = np.where(turned[:, None], swapped, orders)
  return batch | {'position': position, 'orders': orders}
