"""Battles that can be worked out by hand, sets whose order means nothing, and SMAX itself where it is installed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_lib.baselines import skirmish as rules
from perceiver_lib.data import skirmish, skirmish_demonstrations
from perceiver_lib.data.skirmish import ATTACK, KINDS, STOP, Battle, Units

MARINE, STALKER, ZEALOT = (KINDS.index(name) for name in ('marine', 'stalker', 'zealot'))
UP, RIGHT, DOWN, LEFT = range(4)
AWAY = (28.0, 28.0)
"""Where nobody has anything to do with the others."""

advance = jax.jit(skirmish.advance)
expert = jax.jit(skirmish.expert)


def battle(position, kind, health=None, cooldown=(0.0,) * 4, team=(0, 0, 1, 1)) -> Battle:
  """Four units."""
  kind = jnp.array(kind, jnp.int32)
  units = Units(
    position=jnp.array(position, jnp.float32),
    health=jnp.asarray(skirmish.HEALTH)[kind] if health is None else jnp.array(health, jnp.float32),
    cooldown=jnp.array(cooldown, jnp.float32),
    kind=kind,
    team=jnp.array(team, jnp.int32),
  )
  return Battle(units=units, start=units.position, shot_at=jnp.full(4, -1, jnp.int32), step=jnp.int32(0))


def after(state: Battle, *orders: int, times: int = 1, noise: float = 0.0) -> Units:
  for _ in range(times):
    state = advance(state, jnp.array(orders, jnp.int32), jnp.full((skirmish.SUBSTEPS, 4), noise, jnp.float32))
  return state.units


def test_units_walk_at_the_speed_of_their_kind_and_the_wall_kills():
  state = battle([(10, 10), (20, 10), (10, 20), (30.5, 20)], [MARINE, ZEALOT, STALKER, STALKER])
  moved = after(state, UP, LEFT, DOWN, RIGHT)
  np.testing.assert_allclose(
    moved.position, [(10, 10 + 3.15 / 2), (20 - 3.15 / 2, 10), (10, 20 - 4.13 / 2), (32, 20)], rtol=1e-6
  )
  assert moved.health.tolist() == [45, 150, 160, 0]
  np.testing.assert_array_equal(after(state, *[STOP] * 4).position, state.units.position)


@pytest.mark.parametrize(
  ('times', 'noise', 'health'),
  [(1, 0, 141), (2, 0, 132), (3, 0, 123), (3, 2, 132)],
)
def test_a_marine_shoots_every_eleventh_small_step_and_noise_delays_it(times, noise, health):
  """Its 0.61 s are ten small steps of 1/16 s; orders are eight. Two small steps more: 0, 13, 26."""
  state = battle([(10, 10), AWAY, (14, 10), (28, 4)], [MARINE, ZEALOT, ZEALOT, ZEALOT])
  hit = after(state, ATTACK + 2, STOP, STOP, STOP, times=times, noise=noise)
  assert hit.health.tolist() == [45, 150, health, 150]


@pytest.mark.parametrize(('distance', 'cooldown', 'health'), [(4.99, 0, 141), (5.0, 0, 150), (4.0, 0.6, 150)])
def test_range_and_cooldown_hold_fire(distance, cooldown, health):
  state = battle([(10, 10), AWAY, (10 + distance, 10), (28, 4)], [MARINE, ZEALOT, ZEALOT, ZEALOT], None, [cooldown] * 4)
  assert after(state, ATTACK + 2, STOP, STOP, STOP).health[2] == health
  assert skirmish.targets(state.units)[0].tolist() == [False, False, distance < 5, False]


def test_all_shoot_at_once_damage_adds_up_and_the_dead_do_nothing():
  state = battle([(10, 10), (11.5, 10), (14, 10), (28, 4)], [MARINE, MARINE, MARINE, ZEALOT], [9, 45, 18, 150])
  left = after(state, ATTACK + 2, ATTACK + 2, ATTACK + 0, STOP)
  assert left.health.tolist() == [0, 45, 0, 150]
  still = after(dataclasses.replace(state, units=left), UP, ATTACK + 2, ATTACK + 1, STOP)
  assert still.health.tolist() == [0, 45, 0, 150]
  np.testing.assert_array_equal(still.position[0], left.position[0])
  assert not skirmish.targets(left).any()


def test_units_that_overlap_are_pushed_apart_but_not_by_the_dead():
  state = battle([(10, 10), (10.5, 10), (20, 10), (20.5, 10)], [ZEALOT] * 4, [150, 150, 150, 0])
  np.testing.assert_allclose(
    after(state, *[STOP] * 4).position, [(9.75, 10), (10.75, 10), (20, 10), (20.5, 10)], atol=1e-5
  )


def test_a_battle_ends_with_the_last_unit_of_a_team_or_after_all_orders():
  ended = {
    (1, 1, 1, 1): (False, 0),
    (1, 0, 0, 0): (True, 1),
    (0, 0, 0, 1): (True, -1),
    (0, 0, 0, 0): (True, 0),
  }
  for health, expected in ended.items():
    state = battle([(10, 10)] * 4, [MARINE] * 4, health)
    assert (bool(skirmish.is_over(state)), int(skirmish.outcome(state))) == expected
  state = battle([(10, 10)] * 4, [MARINE] * 4)
  assert skirmish.is_over(dataclasses.replace(state, step=jnp.int32(skirmish.MAX_STEPS)))


def test_the_expert_shoots_at_whom_its_comrades_can_fell_and_walks_to_the_nearest():
  """Both marines reach unit 2, only the first reaches unit 3: 20 / 18 against 12 / 9."""
  position = [(10, 10), (13, 10), (12, 13), (7, 11)]
  state = battle(position, [MARINE, MARINE, MARINE, MARINE], [45, 45, 20, 12])
  assert expert(state.units)[:2].tolist() == [ATTACK + 2, ATTACK + 2]
  assert rules.weakest_to_the_nearest(state.units)[0] == ATTACK + 3
  far = battle([(10, 10), (13, 16), (3, 10), (30, 11)], [MARINE] * 4).units
  assert expert(far)[:2].tolist() == [LEFT, LEFT]
  assert rules.closest_to_the_middle(far)[0] == RIGHT
  assert expert(dataclasses.replace(far, health=far.health.at[2].set(0.0)))[:2].tolist() == [RIGHT, RIGHT]


def test_the_bot_keeps_its_target_and_walks_home_if_it_sees_nobody():
  state = battle([(10, 10), (2, 2), (12, 10), (10, 13)], [MARINE] * 4)
  shoots, target, moves = skirmish.bot_orders(state)
  assert (shoots.tolist(), int(target[0])) == ([True, False, True, True], 2)
  _, target, _ = skirmish.bot_orders(dataclasses.replace(state, shot_at=jnp.array([3, -1, -1, -1], jnp.int32)))
  assert int(target[0]) == 3
  np.testing.assert_array_equal(moves[1], [1, 0, 0, 0])
  seen = battle([(10, 10), (2, 2), (18, 10), (10, 18)], [MARINE] * 4)
  np.testing.assert_allclose(skirmish.bot_orders(seen)[2][0], [0.5, 0.5, 0, 0])
  assert [int(skirmish.bot(seen, jnp.full(4, chance))[0]) for chance in (0.2, 0.7)] == [UP, RIGHT]


def test_units_are_a_set_and_the_dead_are_not_in_it():
  chance = jax.random.uniform(jax.random.key(3), (2 * 8 + 6,))
  state = jax.jit(skirmish.begin)(chance)
  units = state.units
  assert units.kind[:2].tolist() == units.kind[2:].tolist() and units.team.tolist() == [0, 0, 1, 1]
  assert ((units.position > -2) & (units.position < 34)).all()
  state = dataclasses.replace(state, units=dataclasses.replace(units, health=units.health.at[1].set(0.0)))
  order = np.array([2, 0, 3, 1])
  orders, noise = expert(state.units), jax.random.uniform(jax.random.key(4), (skirmish.SUBSTEPS, 4))
  mixed = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, state)
  # A pointer to unit j becomes one to the place where unit j stands now.
  there = jnp.concatenate([jnp.arange(ATTACK), ATTACK + jnp.argsort(order)])
  alive = np.asarray(mixed.units.alive)
  np.testing.assert_array_equal(expert(mixed.units)[alive], there[orders[order]][alive])
  one, other = advance(state, orders, noise).units, advance(mixed, there[orders[order]], noise[:, order]).units
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[order], b, rtol=1e-6), one, other)
  left = jax.tree.map(lambda leaf: leaf[np.array([0, 2, 3])], state.units)
  np.testing.assert_allclose(
    skirmish.distances(left)[1], skirmish.distances(state.units)[1][[[0], [2], [3]], [0, 2, 3]]
  )


def test_demonstrations_are_the_experts_split_by_battle_kept_and_mirrored(tmp_path):
  settings = dict(num_units=2, num_states=400, num_lanes=8, seed=1, data_dir=tmp_path)
  data = skirmish_demonstrations.load(**settings)
  splits = (data.train, data.validation, data.test)
  battles = [set(split.arrays['battle'].tolist()) for split in splits]
  assert sum(map(len, battles)) == len(set.union(*battles)) and sum(map(len, splits)) == 400
  for change in (lambda batch: batch, lambda batch: skirmish_demonstrations.mirrored(batch, np.random.default_rng(0))):
    batch = change(data.train.arrays)
    units = skirmish_demonstrations.units_of(batch)
    counts = np.asarray(units.alive & (units.team == 0))
    assert (np.asarray(jax.vmap(expert)(units)) == batch['orders'])[counts].all()
  [kept] = (tmp_path / 'skirmish').iterdir()
  stamp = kept.stat().st_mtime_ns
  again = skirmish_demonstrations.load(**settings)
  assert again.provenance == data.provenance and kept.stat().st_mtime_ns == stamp
  kept.write_bytes(kept.read_bytes()[:1000])
  with pytest.raises(ValueError, match='is damaged'):
    skirmish_demonstrations.load(**settings)


def test_policies_fight_as_many_battles_as_were_asked_for_from_the_same_starts():
  policies = [
    jax.jit(lambda battles, key: jax.vmap(skirmish.expert)(battles.units)),
    jax.jit(lambda battles, key: rules.random_orders(battles.units, key)),
  ]
  won, seconds = [], []
  for policy in policies:
    found = skirmish.fight(policy, jax.random.key(2), num_units=2, num_battles=16, num_lanes=8)
    assert found.shape == (16,) and set(found.tolist()) <= {-1, 0, 1}
    won.append((found == 1).sum())
    stream = skirmish.turns(policy, jax.random.key(2), num_units=2, num_lanes=8, num_rounds=2)
    seconds.append(next(turn for turn in stream if turn.number[0] == 1).battles.start[0])
  assert won[0] > won[1]
  np.testing.assert_array_equal(*seconds)
  with pytest.raises(ValueError, match='whole rounds of 8 lanes'):
    skirmish.fight(policies[0], jax.random.key(2), num_units=2, num_battles=12, num_lanes=8)


def test_battles_go_as_in_smax():
  """Every decision of the bot, and every step of the rules on the same random bits, in battles of 10 against 10."""
  smax = pytest.importorskip('jaxmarl.environments.smax')
  bots = pytest.importorskip('jaxmarl.environments.smax.heuristic_enemy')
  n = 10
  scenario = smax.Scenario(jnp.zeros(2 * n, jnp.uint8), n, n, True, True)
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    env = smax.SMAX(scenario=scenario)
    policies = [bots.create_heuristic_policy(env, team) for team in (0, 1)]

    def ours(state, shot_at, start) -> Battle:
      units = Units(
        position=state.unit_positions,
        health=state.unit_health,
        cooldown=state.unit_weapon_cooldowns,
        kind=state.unit_types.astype(jnp.int32),
        team=jnp.repeat(jnp.arange(2), n),
      )
      return Battle(units=units, start=start, shot_at=shot_at, step=state.step)

    @jax.jit
    def both(state, memory, shot_at, start, key):
      of_actions, of_step = jax.random.split(key)
      seen = env.get_obs_unit_list(state)
      seen, keys = jnp.stack([seen[name] for name in env.agents]), jax.random.split(of_actions, 2 * n)
      parts = []
      for team, policy in enumerate(policies):
        rows = slice(team * n, (team + 1) * n)
        parts.append(jax.vmap(policy)(keys[rows], jax.tree.map(lambda leaf, rows=rows: leaf[rows], memory), seen[rows]))
      actions, memory = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
      # Theirs number the enemies from either end.
      index = actions - ATTACK
      orders = jnp.where(actions < ATTACK, actions, ATTACK + jnp.where(jnp.arange(2 * n) < n, n + index, n - 1 - index))
      battle = ours(state, shot_at, start)
      _, theirs, *_ = env.step_env_no_decode(of_step, state, env._decode_discrete_actions(actions))

      def noise(key, _):
        key, used = jax.random.split(key)
        draw = jax.vmap(lambda key: jax.random.uniform(key, minval=-1 / 16, maxval=2 / 16))
        return key, 16 * draw(jax.random.split(used, 2 * n))

      _, draws = jax.lax.scan(noise, of_step, None, length=skirmish.SUBSTEPS)
      after = skirmish.advance(battle, orders, draws)
      shoots, target, moves = skirmish.bot_orders(battle)
      move = jnp.take_along_axis(moves, jnp.minimum(orders, 3)[:, None], 1)[:, 0]
      agrees = jnp.where(orders >= ATTACK, shoots & (ATTACK + target == orders), ~shoots & (move > 0))
      errors = {
        'position': after.units.position - theirs.unit_positions,
        'health': after.units.health - theirs.unit_health,
        'cooldown': jnp.where(theirs.unit_alive, after.units.cooldown - theirs.unit_weapon_cooldowns, 0),
      }
      worst = jax.tree.map(lambda error: jnp.abs(error).max(), errors)
      return theirs, memory, after.shot_at, (agrees | ~battle.units.alive).all(), worst

    steps = 0
    for seed in range(5):
      _, state = env.reset(jax.random.key(seed))
      start, shot_at = state.unit_positions, jnp.full(2 * n, -1)
      memory = bots.HeuristicPolicyState(default_target=jnp.zeros((2 * n, 2)), last_attacked_enemy=shot_at)
      for turn in range(40):
        if bool(state.done):
          break
        key = jax.random.fold_in(jax.random.key(100 + seed), turn)
        state, memory, shot_at, agrees, worst = both(state, memory, shot_at, start, key)
        assert agrees and worst['health'] == 0 and worst['cooldown'] < 1e-6 and worst['position'] < 1e-5
        steps += 1
    assert steps > 100
