"""What notebook 05 measures, on players whose scores are known; and that its models see sets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perceiver_lib.adapters import FeatureAdapterConfig
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.data import skirmish
from perceiver_lib.data.loading import ArraySource
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.lessons import perceiver_io_entity_sets as lesson
from perceiver_lib.models.perceiver_io import PerceiverIO, PerceiverIOConfig
from perceiver_lib.models.transformer import Transformer, TransformerConfig
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import InputQueries
from perceiver_lib.tokens import Tokens
from tests.support import compiled

FOURIER = FourierFeatures(num_bands=2, max_resolution=(32, 32))
ADAPTER = FeatureAdapterConfig(num_values=lesson.NUM_VALUES, num_projected_channels=6, position=FOURIER)
LAYER = LayerConfig(num_heads=2)


@pytest.fixture(scope='module')
def perceiver():
  decoder = DecoderConfig(queries=InputQueries(), num_outputs=lesson.NUM_OUTPUTS)
  config = dataclasses.replace(PerceiverIOConfig.tiny(ADAPTER, decoder), num_self_attends_per_block=1)
  return PerceiverIO(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope='module')
def transformer():
  config = TransformerConfig(input_adapter=ADAPTER, num_layers=1, num_outputs=lesson.NUM_OUTPUTS, self_attend=LAYER)
  return Transformer(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope='module')
def units():
  """24 battlefields of 3 against 3; the last unit of each team is dead."""
  chance = jax.random.uniform(jax.random.key(0), (24, 3 * 8 + 6))
  units = jax.jit(jax.vmap(skirmish.begin))(chance).units
  return dataclasses.replace(units, health=units.health.at[:, 2::3].set(0.0))


def test_nothing_depends_on_the_order_of_units_or_on_the_dead(perceiver, units):
  changes = lesson.exact_differences(perceiver, jax.tree.map(lambda leaf: leaf[:1], units))
  assert set(changes) == {'permuted', 'dead removed', 'NaN in the dead'}
  assert max(changes.values()) < 1e-5


def test_only_legal_orders_have_a_score_and_a_unit_alone_knows_of_nobody(transformer, units):
  logits = jax.jit(lesson.order_logits, static_argnums=2)
  alone, together = logits(transformer, units, lesson.alone), logits(transformer, units, lesson.together)
  legal = np.asarray(jax.vmap(skirmish.legal_orders)(units))
  for found in (alone, together):
    np.testing.assert_array_equal(np.asarray(found) > lesson.ILLEGAL, legal)
  moved = dataclasses.replace(units, position=units.position.at[:, 1:].set(16.0))
  np.testing.assert_allclose(logits(transformer, moved, lesson.alone)[:, 0, :5], alone[:, 0, :5], atol=1e-6)
  assert np.abs(logits(transformer, moved, lesson.together)[:, 0, :5] - together[:, 0, :5]).max() > 1e-3


def test_foreign_latents_are_those_of_a_battle_half_a_batch_away(perceiver, units):
  def first_of(tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """The first battle asks the latents of another one: by the lesson, and by hand."""
    latents = perceiver.encode(tokens)
    half = -(tokens.batch_size // 2)
    other = dataclasses.replace(latents, values=latents.values[half : half + 1])
    one = jax.tree.map(lambda leaf: leaf[:1], tokens)
    return lesson.with_foreign_latents(perceiver, tokens)[:1], perceiver.decode(other, one)

  found, expected = compiled(first_of, lesson.unit_tokens(units))
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_expert_has_all_orders_right_and_who_stops_none_of_the_moves(units):
  orders = jax.vmap(skirmish.expert)(units)
  arrays = {name: np.asarray(getattr(units, name)) for name in ('position', 'health', 'cooldown', 'kind', 'team')}
  source = ArraySource(arrays | {'orders': np.asarray(orders, np.int16)})
  rules = {'expert': skirmish.expert, 'stop': lambda one: jnp.full(6, skirmish.STOP)}
  scores = lesson.score_rules(rules, source, batch_size=24)
  assert set(scores['expert'].values()) == {100.0} and set(scores['stop'].values()) == {0.0}


def test_taking_the_nearest_foe_turns_the_expert_and_nobody_who_stops(units):
  expert = lesson.remove_a_foe(lesson.policy_of(skirmish.expert), skirmish.expert, units, batch_size=12)
  assert expert == {'followed': 100.0, 'stayed': 0.0, 'farthest': 0.0}
  stops = lesson.policy_of(lambda one: jnp.full(6, skirmish.STOP))
  stopped = lesson.remove_a_foe(stops, skirmish.expert, units, batch_size=12)
  assert stopped == {'followed': 0.0, 'stayed': 100.0, 'farthest': 0.0}


def test_a_clone_gives_the_best_orders_and_its_reads_sum_to_one(perceiver, units):
  battles = skirmish.Battle(
    units=units, start=units.position, shot_at=-1 + 0 * units.kind, step=jnp.zeros(24, jnp.int32)
  )
  orders = lesson.clone(perceiver)(battles, jax.random.key(0))
  np.testing.assert_array_equal(orders, compiled(lesson.order_logits, perceiver, units).argmax(-1))
  weights, alive = lesson.reads(perceiver, units), np.asarray(units.alive)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert (weights[np.broadcast_to(~alive[:, None], weights.shape)] == 0).all()


def test_numbers_of_players_stand_in_one_table():
  table = lesson.comparison(
    {'a': {'won': 12.34}, 'b': {'won': 50.0, 'mflop': 2.0}}, {'won': 'won (%)|.1f', 'mflop': 'MFLOP|.0f'}
  )
  assert table.header == ['player', 'won (%)', 'MFLOP'] and table.rows == [['a', '12.3', '–'], ['b', '50.0', '2']]
  assert lesson.standard_error(50, 256) == pytest.approx(3.125)
