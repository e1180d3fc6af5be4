"""Skirmishes of StarCraft-like units as array code, a bot to fight, and an expert that sees every unit.

The rules, the numbers of the units and the built-in bot are those of SMAX in JaxMARL 0.2.0 (Rutherford et al., 2023,
arXiv 2311.10090; Apache License 2.0), written anew for any number of units a side: units are a set, orders name their
target by its index in it, and nothing here needs JaxMARL. Where it is installed, a test plays both step by step.

All functions take one battle; `jax.vmap` makes them take many.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from perceiver_lib.tokens import AnyArray, pytree_dataclass

KINDS = ('marine', 'marauder', 'stalker', 'zealot', 'zergling', 'hydralisk')
SPEED = np.array([3.15, 2.25, 4.13, 3.15, 4.13, 3.15], np.float32)
DAMAGE = np.array([9, 10, 13, 8, 5, 12], np.float32)
RANGE = np.array([5, 6, 6, 2, 2, 5], np.float32)
SIGHT = np.array([9, 10, 10, 9, 8, 9], np.float32)
RADIUS = np.array([0.375, 0.5625, 0.625, 0.5, 0.375, 0.625], np.float32)
HEALTH = np.array([45, 125, 160, 150, 35, 80], np.float32)
COOLDOWN = np.array([0.61, 1.07, 1.87, 0.86, 0.5, 0.59], np.float32)
"""Of each kind; lengths in a field of SIDE x SIDE, times in seconds."""

SIDE = 32.0
SUBSTEPS, SECONDS = 8, 1 / 16
"""An order holds for so many small steps of so many seconds."""
MAX_STEPS = 100
"""Orders; then a battle ends without a winner."""

DIRECTIONS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0], [0, 0]], np.float32)
STOP, ATTACK = 4, 5
"""Orders: 0 to 3 move up, right, down and left; STOP; ATTACK + j shoots at unit j of the battle."""


@pytree_dataclass()
class Units:
  """What a player sees of a battle: a set of units of two teams, the dead among them (health 0).

  Attributes:
    position: x to the right and y up, from 0 to SIDE; who touches the wall dies.
    health: up to HEALTH of its kind.
    cooldown: seconds until the unit can shoot again; at 0 or below it can.
    kind: index in KINDS.
    team: 0 or 1.
  """

  position: Float[AnyArray, '*b u 2']
  health: Float[AnyArray, '*b u']
  cooldown: Float[AnyArray, '*b u']
  kind: Int[AnyArray, '*b u']
  team: Int[AnyArray, '*b u']

  @property
  def alive(self) -> Bool[AnyArray, '*b u']:
    return self.health > 0


@pytree_dataclass()
class Battle:
  """A battle; besides the units, what the built-in bot remembers.

  Attributes:
    start: where each unit began.
    shot_at: whom the last order of each unit attacked, -1 = nobody.
    step: orders given so far.
  """

  units: Units
  start: Float[Array, '*b u 2']
  shot_at: Int[Array, '*b u']
  step: Int[Array, '*b']


Policy = Callable[[Battle, Key[Array, '']], Int[Array, 'b u']]
"""(battles, key) -> orders for every unit of a batch of battles; those of team 0 are carried out. Best compiled."""


def begin(chance: Float[Array, 'draws']) -> Battle:
  """As many units against as many, of the same random kinds on both sides; team 0 comes first.

  As in SMACv2 the teams are mirror images in the left and the right half, or one is in the middle and the other in
  groups around it.

  Args:
    chance: 8 numbers a unit of one team and 6 besides, uniform in [0, 1).
  """
  n = len(chance) // 8
  place, middle, scatter, (kinds, group) = (*chance[: 6 * n].reshape(3, n, 2), chance[6 * n : 8 * n].reshape(2, n))
  around, first_inside, outwards = chance[-6] < 0.5, chance[-5] < 0.5, chance[-4:, None]
  kind = jnp.tile((len(KINDS) * kinds).astype(jnp.int32), 2)
  left = place * jnp.array([[SIDE / 2, SIDE]])
  mirrored = jnp.concatenate([left, jnp.array([[SIDE, 0.0]]) + jnp.array([[-1.0, 1.0]]) * left])
  corners = SIDE * jnp.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
  groups = outwards * SIDE / 2 + (1 - outwards) * corners
  inside, outside = SIDE / 2 + 4 * middle - 2, groups[(4 * group).astype(jnp.int32)] + 4 * scatter - 2
  both = jnp.concatenate([inside, outside])
  surrounded = jnp.where(first_inside, both, jnp.roll(both, n, axis=0))
  units = Units(
    position=jnp.where(around, surrounded, mirrored),
    health=jnp.asarray(HEALTH)[kind],
    cooldown=jnp.zeros(2 * n),
    kind=kind,
    team=jnp.repeat(jnp.arange(2), n, total_repeat_length=2 * n),
  )
  units = _pushed_apart(units)
  return Battle(units=units, start=units.position, shot_at=jnp.full(2 * n, -1, jnp.int32), step=jnp.int32(0))


def distances(units: Units) -> tuple[Float[Array, 'u u 2'], Float[Array, 'u u']]:
  """[i, j]: the vector from unit i to unit j, and its length."""
  vector = units.position[None] - units.position[:, None]
  return vector, jnp.sqrt((vector**2).sum(-1))


def foes(units: Units) -> Bool[Array, 'u u']:
  """[i, j]: both are alive, and of different teams."""
  return (units.team[:, None] != units.team[None]) & units.alive[:, None] & units.alive[None]


def targets(units: Units) -> Bool[Array, 'u u']:
  """[i, j]: unit i may be ordered to shoot at unit j, which is a foe in range."""
  return foes(units) & (distances(units)[1] < jnp.asarray(RANGE)[units.kind][:, None])


def legal_orders(units: Units) -> Bool[Array, 'u 5+u']:
  """[i, order]: every move, and the attacks on `targets`."""
  allowed = targets(units)
  return jnp.concatenate([jnp.ones((len(allowed), ATTACK), bool), allowed], axis=1)


def advance(battle: Battle, orders: Int[Array, 'u'], noise: Float[Array, 'substeps u']) -> Battle:
  """Carries out one order a unit.

  In each small step all move and shoot at once: a shot that is fired hits. Who can't shoot yet, or whose target left
  its range or died, stands still.

  Args:
    noise: of the cooldown after a shot, for each of the SUBSTEPS; in units of one, and uniform in [-1, 2) in SMAX.
  """
  number, kind = jnp.arange(len(orders)), battle.units.kind
  way = jnp.asarray(DIRECTIONS)[jnp.minimum(orders, STOP)] * (jnp.asarray(SPEED)[kind] * SECONDS)[:, None]
  attacks = orders >= ATTACK
  target = jnp.where(attacks, orders - ATTACK, number)
  aimed = target[:, None] == number[None]
  damage, reach, reload = (jnp.asarray(of_kind)[kind] for of_kind in (DAMAGE, RANGE, COOLDOWN))

  def small_step(units: Units, noise: Float[Array, 'u']) -> tuple[Units, None]:
    alive = units.alive
    distance = jnp.sqrt(((units.position - units.position[target]) ** 2).sum(-1))
    shoots = attacks & (target != number) & alive & alive[target] & (distance < reach) & (units.cooldown <= 0)
    position = jnp.where(alive[:, None], jnp.clip(units.position + way, 0, SIDE), units.position)
    harm = jnp.where(aimed & shoots[:, None], damage[:, None], 0.0).sum(0)
    health = jnp.maximum(units.health - harm, 0.0)
    at_wall = ((position <= 0) | (position >= SIDE)).any(-1)
    cooldown = jnp.where(shoots, reload + noise * SECONDS, units.cooldown - SECONDS)
    moved = dataclasses.replace(units, position=position, health=jnp.where(at_wall, 0.0, health), cooldown=cooldown)
    return _pushed_apart(moved), None

  units, _ = jax.lax.scan(small_step, battle.units, noise)
  return dataclasses.replace(battle, units=units, shot_at=jnp.where(attacks, orders - ATTACK, -1), step=battle.step + 1)


def _pushed_apart(units: Units) -> Units:
  """Living units that overlap push each other away, each by half of the overlap."""
  x, y = units.position.T
  right, up = x[:, None] - x[None], y[:, None] - y[None]
  radius, alive = jnp.asarray(RADIUS)[units.kind], units.alive
  distance = jnp.sqrt(right**2 + up**2) + jnp.eye(len(x)) + 1e-6
  overlap = jax.nn.relu((radius[:, None] + radius[None]) / distance - 1)
  overlap = jnp.where(alive[:, None] & alive[None], overlap, 0.0)
  push = jnp.stack([(right * overlap).sum(1), (up * overlap).sum(1)], -1) / 2
  return dataclasses.replace(units, position=units.position + push)


def is_over(battle: Battle) -> Bool[Array, '']:
  alive = battle.units.alive
  left = [(alive & (battle.units.team == team)).any() for team in (0, 1)]
  return ~left[0] | ~left[1] | (battle.step >= MAX_STEPS)


def outcome(battle: Battle) -> Int[Array, '']:
  """1 if only team 0 has units left, -1 if only team 1 has, else 0."""
  alive = battle.units.alive
  first, second = ((alive & (battle.units.team == team)).any() for team in (0, 1))
  return first.astype(jnp.int32) - second.astype(jnp.int32)


def heading(vector: Float[Array, '*u 2']) -> Int[Array, '*u']:
  """The move whose direction is nearest to a vector."""
  return jnp.argmax(vector @ jnp.asarray(DIRECTIONS[:STOP]).T, -1)


def bot_orders(battle: Battle) -> tuple[Bool[Array, 'u'], Int[Array, 'u'], Float[Array, 'u 4']]:
  """SMAX's built-in bot: whether a unit shoots, at whom, and the probabilities of its moves if it does not.

  It shoots at whom it shot at before, else at the closest foe in range. Without one it walks towards a random foe in
  sight, else to where its start lies when turned by half a circle about the centre.
  """
  units = battle.units
  vector, distance = distances(units)
  allowed = targets(units)
  same = jnp.take_along_axis(allowed, jnp.maximum(battle.shot_at, 0)[:, None], 1)[:, 0] & (battle.shot_at >= 0)
  target = jnp.where(same, battle.shot_at, jnp.argmin(jnp.where(allowed, distance, jnp.inf), -1))
  seen = foes(units) & (distance < jnp.asarray(SIGHT)[units.kind][:, None])
  count = seen.sum(-1, keepdims=True, dtype=jnp.float32)
  chase = jnp.where(seen[..., None], jax.nn.one_hot(heading(vector), 4), 0.0).sum(1) / jnp.maximum(count, 1)
  home = jax.nn.one_hot(heading(SIDE - battle.start - units.position), 4)
  return allowed.any(-1), target, jnp.where(count > 0, chase, home)


def bot(battle: Battle, chance: Float[Array, 'u']) -> Int[Array, 'u']:
  """Orders of the built-in bot, see `bot_orders`; `chance`, uniform in [0, 1), draws the moves."""
  shoots, target, moves = bot_orders(battle)
  return jnp.where(shoots, ATTACK + target, (moves.cumsum(-1)[:, :-1] <= chance[:, None]).sum(-1))


def expert(units: Units) -> Int[Array, 'u']:
  """Orders without chance that need the whole set of units.

  A unit shoots at the foe in range that falls first if all who can shoot at it do: least health over their damage.
  Without one it walks towards the nearest foe of the field, seen or not.
  """
  distance, allowed = distances(units)[1], targets(units)
  fire = jnp.where(allowed, jnp.asarray(DAMAGE)[units.kind][:, None], 0.0).sum(0)
  falls = (units.health / jnp.maximum(fire, 1))[None] + 0.001 * distance
  return shoot_or_walk(units, falls, towards=nearest_foe(units))


def nearest_foe(units: Units) -> Float[Array, 'u 2']:
  """The vector from each unit to its nearest foe anywhere; of no meaning where there is none."""
  vector, distance = distances(units)
  nearest = jnp.argmin(jnp.where(foes(units), distance, jnp.inf), -1)
  return jnp.take_along_axis(vector, nearest[:, None, None], 1)[:, 0]


def shoot_or_walk(units: Units, cost: Float[Array, 'u u'], *, towards: Float[Array, 'u 2']) -> Int[Array, 'u']:
  """Orders: shoot at the foe in range with the least cost `[shooter, foe]`; without one walk along `towards`."""
  allowed = targets(units)
  target = jnp.argmin(jnp.where(allowed, cost, jnp.inf), -1)
  return jnp.where(allowed.any(-1), ATTACK + target, heading(towards))


@pytree_dataclass()
class Turn:
  """One order for all units of battles that are fought side by side, one lane each.

  Attributes:
    battles: before the order.
    number: which battle of its lane this is.
    orders: of both teams.
    ended: whether the order ends the battle; its lane goes on with the next one.
    outcome: 1 if team 0 won by it, -1 if team 1 did, else 0.
  """

  battles: Battle
  number: Int[AnyArray, 'b']
  orders: Int[AnyArray, 'b u']
  ended: Bool[AnyArray, 'b']
  outcome: Int[AnyArray, 'b']


def turns(policy: Policy, key: Key[Array, ''], *, num_units: int, num_lanes: int, num_rounds: int) -> Iterator[Turn]:
  """Battles without end of team 0 under a policy against team 1 under the built-in bot.

  The starts are the same for every policy, `num_rounds` for each lane, then they come again. All policies share one
  program, for the loop over turns is Python's.
  """
  starts = _starts(key, num_rounds, num_lanes, num_units)
  battles, number = jax.tree.map(lambda leaf: leaf[0], starts), jnp.zeros(num_lanes, jnp.int32)
  for count in itertools.count(1):
    asked, drawn = jax.random.split(jax.random.fold_in(key, count))
    orders, fresh = policy(battles, asked), _following(starts, number)
    battles, number, turn = _turn(battles, number, orders, fresh, drawn)
    yield turn


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _starts(key: Key[Array, ''], num_rounds: int, num_lanes: int, num_units: int) -> Battle:
  chance = jax.random.uniform(key, (num_rounds, num_lanes, 8 * num_units + 6))
  return jax.vmap(jax.vmap(begin))(chance)


@jax.jit
def _following(starts: Battle, number: Int[Array, 'b']) -> Battle:
  """Of each lane, the start of the battle after this one."""
  return jax.tree.map(lambda leaf: leaf[(number + 1) % len(leaf), jnp.arange(len(number))], starts)


@jax.jit
def _turn(
  battles: Battle, number: Int[Array, 'b'], orders: Int[Array, 'b u'], fresh: Battle, key: Key[Array, '']
) -> tuple[Battle, Int[Array, 'b'], Turn]:
  chance = jax.random.uniform(key, (len(orders), SUBSTEPS + 1, orders.shape[1]))

  def one(battle: Battle, orders: Array, chance: Array, fresh: Battle) -> tuple[Battle, tuple[Array, ...]]:
    orders = jnp.where(battle.units.team == 0, orders, bot(battle, chance[0]))
    after = advance(battle, orders, 3 * chance[1:] - 1)
    ended = is_over(after)
    following = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, after)
    return following, (orders, ended, jnp.where(ended, outcome(after), 0))

  following, (orders, ended, result) = jax.vmap(one)(battles, orders, chance, fresh)
  turn = Turn(battles=battles, number=number, orders=orders, ended=ended, outcome=result)
  return following, number + ended.astype(jnp.int32), turn


def fight(
  policy: Policy, key: Key[Array, ''], *, num_units: int, num_battles: int, num_lanes: int = 64
) -> Int[np.ndarray, 'battles']:
  """The outcome of many battles against the built-in bot: 1 won, -1 lost, 0 neither in MAX_STEPS orders.

  Every policy meets the same starts.

  Raises:
    ValueError: if the lanes don't divide the battles.
  """
  if num_battles % num_lanes:
    raise ValueError(f'{num_battles} battles are not whole rounds of {num_lanes} lanes.')
  found = np.zeros((num_battles // num_lanes, num_lanes), np.int32)
  left = found.size
  for turn in turns(policy, key, num_units=num_units, num_lanes=num_lanes, num_rounds=len(found)):
    number, ended, result = (np.asarray(part) for part in (turn.number, turn.ended, turn.outcome))
    counts = np.flatnonzero(ended & (number < len(found)))
    found[number[counts], counts] = result[counts]
    left -= len(counts)
    if not left:
      return found.reshape(-1)
