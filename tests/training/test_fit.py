from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from perceiver_lib.training import optimizers
from perceiver_lib.training.checkpoints import Checkpointing
from perceiver_lib.training.fit import NonFiniteLossError, fit
from perceiver_lib.training.losses import cross_entropy
from perceiver_lib.training.metrics import accuracy, correct, evaluate_dataset

NUM_STEPS = 23


class Classifier(nnx.Module):
  def __init__(self, *, rngs: nnx.Rngs, width: int = 29):
    self.hidden = nnx.Linear(7, width, rngs=rngs)
    self.head = nnx.Linear(width, 5, rngs=rngs)
    self.dropout = nnx.Dropout(0.2)

  def __call__(self, x, rngs=None):
    x = jax.nn.gelu(self.hidden(x))
    return self.head(x if rngs is None else self.dropout(x, rngs=rngs))


def loss_fn(model, batch, rngs):
  logits = model(batch['x'], rngs=rngs)
  return cross_entropy(logits, batch['label']), {'accuracy': accuracy(logits, batch['label'])}


def make_batch(step, size=16):
  x = np.random.default_rng(step).normal(size=(size, 7)).astype(np.float32)
  return {'x': x, 'label': x[:, :5].argmax(1)}


def batches(start_step):
  while True:
    yield make_batch(start_step)
    start_step += 1


def measure(model, batch):
  return {'validation_accuracy': correct(model(batch['x']), batch['label'])}


def evaluate(model):
  return evaluate_dataset(model, measure, [make_batch(10_000, 101)])


def adamw(num_steps=NUM_STEPS):
  return optimizers.adamw_warmup_cosine(3e-2, num_steps, warmup_steps=3)


def train(model=None, **changes):
  settings = {'optimizer': adamw(), 'num_steps': NUM_STEPS, 'seed': 0, 'evaluate': evaluate, 'log_every': 5} | changes
  return fit(
    model or Classifier(rngs=nnx.Rngs(1)),
    settings.pop('loss_fn', loss_fn),
    settings.pop('batches', batches),
    **settings,
  )


def measured(result):
  """The history without clock times."""
  return [{name: value for name, value in record.items() if name != 'seconds'} for record in result.history]


def weights(model):
  return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


def assert_same_weights(a, b):
  jax.tree.map(np.testing.assert_array_equal, weights(a), weights(b))


def test_learns_and_leaves_the_given_model_alone():
  model = Classifier(rngs=nnx.Rngs(1))
  before = weights(model)
  result = train(model, num_steps=300, optimizer=adamw(300), log_every=None)
  jax.tree.map(np.testing.assert_array_equal, weights(model), before)
  steps, losses = result.curve('train_loss')
  assert steps == list(range(3, 301, 3))
  assert losses[0] > 1.2 and np.mean(losses[-10:]) < 0.6
  assert result.history[-1]['validation_accuracy'] > 0.8 > 0.4 > evaluate(model)['validation_accuracy']
  assert result.history[-1]['validation_accuracy'] == evaluate(result.model)['validation_accuracy']
  assert result.num_steps == 300 and result.resumed_from == 0 and result.notes == ()
  assert min(result.compile_seconds, result.train_seconds, result.evaluate_seconds) > 0
  assert result.examples_per_second == pytest.approx(300 * 16 / result.train_seconds)
  with pytest.raises(KeyError, match='there are seconds, train_accuracy'):
    result.curve('perplexity')


def test_equals_a_plain_training_loop():
  """The same updates written out, without dropout; records are means over the steps since the last."""
  model = Classifier(rngs=nnx.Rngs(1))
  params, tx = nnx.state(model, nnx.Param), adamw()
  graphdef, opt_state, losses = nnx.graphdef(model), tx.init(params), []

  @jax.jit
  @jax.value_and_grad
  def gradient(params, batch):
    return cross_entropy(nnx.merge(graphdef, params)(batch['x']), jnp.asarray(batch['label']))

  for step in range(NUM_STEPS):
    batch = make_batch(step)
    loss, gradients = gradient(params, batch)
    with jax.numpy_dtype_promotion('standard'):
      updates, opt_state = tx.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    losses.append(float(loss))
  result = train(loss_fn=lambda model, batch, rngs: (cross_entropy(model(batch['x']), batch['label']), {}))
  expected = [np.mean(losses[start : start + 5]) for start in range(0, NUM_STEPS, 5)]
  assert result.curve('train_loss')[0] == [5, 10, 15, 20, 23]
  np.testing.assert_allclose(result.curve('train_loss')[1], expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    weights(result.model),
    weights(nnx.merge(graphdef, params)),
  )


def test_same_seed_same_metrics_and_another_seed_others():
  first, second, other = train(), train(), train(seed=1)
  assert measured(first) == measured(second)
  assert_same_weights(first.model, second.model)
  assert measured(first) != measured(other)


def test_dropout_differs_from_step_to_step():
  seen = {'label': np.zeros(16, int), 'x': np.ones((16, 7), np.float32)}
  result = train(batches=lambda start: iter([seen] * 30), optimizer=optax.sgd(0.0), log_every=1)
  assert len(set(result.curve('train_loss')[1])) == NUM_STEPS


def test_traces_the_model_once():
  traces = []

  def counted(model, batch, rngs):
    traces.append(1)
    return loss_fn(model, batch, rngs)

  train(loss_fn=counted)
  assert len(traces) == 1


def test_gradient_accumulation_by_optax():
  """Two half batches a step equal one whole batch, for a loss that is a mean over examples."""

  def plain(model, batch, rngs):
    return cross_entropy(model(batch['x']), batch['label']), {}

  def halves(start_step):
    for step in range(start_step, 2 * NUM_STEPS):
      yield {name: value[8 * (step % 2) :][:8] for name, value in make_batch(step // 2).items()}

  whole = train(loss_fn=plain, optimizer=optax.sgd(0.1))
  split = train(loss_fn=plain, optimizer=optax.MultiSteps(optax.sgd(0.1), 2), batches=halves, num_steps=2 * NUM_STEPS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights(whole.model), weights(split.model))


def test_moving_average_of_the_parameters():
  trail = []

  def record(model):
    trail.append(weights(model))
    return {}

  train(evaluate=record, evaluations=NUM_STEPS)
  average = weights(Classifier(rngs=nnx.Rngs(1)))
  for step, values in enumerate(trail):
    decay = min(0.5, (1 + step) / (10 + step))
    average = jax.tree.map(lambda a, b, decay=decay: decay * a + (1 - decay) * b, average, values)
  result = train(ema_decay=0.5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights(result.model), average)


def test_running_statistics_are_carried_along():
  class Normalised(nnx.Module):
    def __init__(self, *, rngs):
      self.norm = nnx.BatchNorm(7, use_running_average=False, momentum=0.5, rngs=rngs)
      self.head = nnx.Linear(7, 5, rngs=rngs)

    def __call__(self, x, rngs=None):
      return self.head(self.norm(x))

  result = train(Normalised(rngs=nnx.Rngs(0)), evaluate=None)
  mean = np.zeros(7)
  for step in range(NUM_STEPS):
    mean = 0.5 * mean + 0.5 * make_batch(step)['x'].mean(0)
  np.testing.assert_allclose(result.model.norm.mean[...], mean, atol=1e-5)


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_loss_guard_names_the_first_bad_step_and_keeps_the_last_good_state(tmp_path, where):
  def bad_loss(model, batch, rngs):
    loss, metrics = loss_fn(model, batch, rngs)
    is_bad = batch['bad'][0]
    if where == 'loss':
      return jnp.where(is_bad, jnp.nan, loss), metrics
    # The slope of sqrt at 0 is infinite, so the gradient breaks where the loss does not.
    return loss + jnp.sqrt(jnp.where(is_bad, 0.0 * model.head.bias[0], 1.0)), metrics

  def poisoned(start_step):
    for step in range(start_step, 100):
      yield make_batch(step) | {'bad': np.full(16, step == 12)}

  kept = []
  with pytest.raises(NonFiniteLossError) as caught:
    train(
      loss_fn=bad_loss,
      batches=poisoned,
      log_every=10,
      evaluate=lambda model: kept.append(model) or {},
      checkpoint=Checkpointing(directory=tmp_path, fingerprint='f', every=5),
    )
  assert caught.value.step == 13
  message = str(caught.value)
  assert 'step 13, noticed at step 15' in message and 'step_00000010' in message and 'learning rate' in message
  assert ('the loss is nan' in message) == (where == 'loss')
  assert not kept


def test_settings_that_would_do_nothing_or_mislead_are_refused():
  for changes, sentence in [
    ({'num_steps': 0}, 'num_steps must be whole, 1 or more; got 0'),
    ({'evaluations': 0}, 'evaluations must be whole, 1 or more; got 0'),
    ({'log_every': -1}, 'log_every must be whole, 1 or more; got -1'),
    ({'ema_decay': float('nan')}, 'ema_decay must be a number in'),
    ({'ema_decay': 1.5}, 'ema_decay must be a number in'),
    ({'loss_fn': lambda m, b, rngs: (m(b['x']).sum(), {'loss': m(b['x']).sum()})}, 'metrics otherwise than loss'),
    ({'evaluate': None, 'evaluations': 3}, 'does nothing without evaluate'),
    ({'batches': lambda start: iter([make_batch(0)] * 4)}, 'ended before step 5'),
    ({'batches': lambda start: iter([make_batch(0), make_batch(1, size=9)])}, r'batch 1 has x \(9, 7\)'),
    ({'loss_fn': lambda m, b, rngs: (m(b['x']), {})}, 'scalar float loss'),
    ({'loss_fn': lambda m, b, rngs: (m(b['x']).sum(), {'logits': m(b['x'])})}, "metric 'logits' of loss_fn"),
    ({'progress': 'loud'}, "'auto', 'bar'"),
  ]:
    with pytest.raises(ValueError, match=sentence):
      train(**changes)
  with pytest.raises(ValueError, match='warmup_steps must be in'):
    optimizers.adamw_warmup_cosine(1e-3, 10, warmup_steps=10)


def resumable(directory, *, fingerprint='f', resume=True, **changes):
  checkpoint = Checkpointing(directory=directory, fingerprint=fingerprint, every=4, resume=resume)
  return train(ema_decay=0.9, **({'checkpoint': checkpoint, 'evaluations': 4} | changes))


def test_kept_weights_and_their_record_take_the_place_of_the_training(tmp_path):
  kept = Checkpointing(directory=tmp_path, fingerprint='f', weights=tmp_path / 'model.safetensors')
  trained = train(checkpoint=kept)
  stored = dataclasses.replace(kept, directory=tmp_path / 'none', train=False)
  found = train(checkpoint=stored, loss_fn=lambda *_: pytest.fail('trained again'))
  assert (found.history, found.resumed_from) == (trained.history, NUM_STEPS)
  assert found.notes == (
    f'Nothing is trained: these are the float16 weights of model.safetensors, after {NUM_STEPS} steps.',
  )
  rounded = trained.model.hidden.kernel[...].astype(jnp.float16).astype(jnp.float32)
  np.testing.assert_array_equal(found.model.hidden.kernel[...], rounded)
  assert not stored.directory.exists()


class Interrupted(Exception):
  pass


def interrupted_at(step):
  def stream(start_step):
    for number in range(start_step, NUM_STEPS):
      if number == step:
        raise Interrupted
      yield make_batch(number)

  return stream


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
  whole = resumable(tmp_path / 'whole')
  for step in (6, 14):
    with pytest.raises(Interrupted):
      resumable(tmp_path / 'parts', batches=interrupted_at(step))
  parts = resumable(tmp_path / 'parts')
  assert parts.resumed_from == 12
  assert measured(parts) == measured(whole)
  assert_same_weights(parts.model, whole.model)
  again = resumable(tmp_path / 'parts')
  assert (
    again.resumed_from == NUM_STEPS
    and again.compile_seconds == parts.compile_seconds > 0
    and again.examples_per_second == 0
  )
  assert measured(again) == measured(whole)
  assert_same_weights(again.model, whole.model)


@pytest.mark.parametrize(
  'changes', [{'fingerprint': 'g'}, {'seed': 5}, {'model': 'wider'}, {'num_steps': NUM_STEPS + 1}]
)
def test_checkpoints_of_other_settings_are_never_used_and_never_lost(tmp_path, changes):
  resumable(tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
  if 'model' in changes:
    changes = {'model': Classifier(rngs=nnx.Rngs(1), width=31)}
  result = resumable(tmp_path, **changes)
  assert result.resumed_from == 0
  assert 'those of 1 other setting(s) are kept' in result.notes[0]
  assert before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}.items()


def test_starting_anew_keeps_what_was_there(tmp_path):
  first = resumable(tmp_path)
  second = resumable(tmp_path, resume=False)
  assert second.resumed_from == 0 and 'kept in' in second.notes[0]
  assert measured(first) == measured(second)
  assert len(list(tmp_path.glob('*_before/step_00000023/manifest.json'))) == 1


PROCESS = """
import json, os, sys, time
sys.path[:0] = sys.argv[1:3]
import jax
import test_fit
start = test_fit.batches
if sys.argv[4] == 'slow':
  def slow(start_step):
    for batch in start(start_step):
      time.sleep(0.05)
      yield batch
  test_fit.batches = slow
result = test_fit.resumable(sys.argv[3], batches=test_fit.batches, progress='silent')
print(json.dumps([result.resumed_from, test_fit.measured(result)]))
"""


def start_process(directory, speed):
  root = Path(__file__).parent
  arguments = [sys.executable, '-c', PROCESS, str(root), str(root.parents[1]), str(directory), speed]
  return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_killed_process_resumes_with_the_same_metrics(tmp_path):
  whole = resumable(tmp_path / 'whole')
  process = start_process(tmp_path / 'killed', 'slow')
  while process.poll() is None and not list((tmp_path / 'killed').glob('*/step_00000008')):
    time.sleep(0.02)
  process.kill()
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  process = start_process(tmp_path / 'killed', 'fast')
  output, _ = process.communicate(timeout=120)
  resumed_from, history = json.loads(output)
  assert 8 <= resumed_from < NUM_STEPS
  assert history == measured(whole)


DEVICES = """
import json, sys
import jax
jax.config.update('jax_num_cpu_devices', 8)
sys.path[:0] = sys.argv[1:3]
from flax import nnx
import test_fit
Auto = jax.sharding.AxisType.Auto
results = {'devices': jax.device_count()}
for name, shape, axes in (('one', (1,), ('data',)), ('data', (8,), ('data',)), ('model', (2, 4), ('data', 'model'))):
  devices = jax.devices()[:1] if name == 'one' else None
  mesh = jax.make_mesh(shape, axes, axis_types=(Auto,) * len(axes), devices=devices)
  model = test_fit.Classifier(rngs=nnx.Rngs(1), width=4096)
  result = test_fit.train(model, mesh=mesh, ema_decay=0.9, progress='silent')
  results[name] = result.curve('train_loss')[1] + result.curve('validation_accuracy')[1]
  results[name + '_spec'] = [str(v[...].sharding.spec) for v in (result.model.hidden.kernel, result.model.head.bias)]
  results[name + '_shard'] = result.model.hidden.kernel[...].addressable_shards[0].data.shape
try:
  test_fit.train(mesh=mesh, batches=lambda start: iter([test_fit.make_batch(0, size=15)]))
except ValueError as error:
  results['uneven'] = str(error)
print(json.dumps(results))
"""


def test_same_losses_on_one_and_on_eight_devices():
  root = Path(__file__).parent
  flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
  environment = os.environ | {'XLA_FLAGS': ' '.join(flags)}
  output = subprocess.check_output(
    [sys.executable, '-c', DEVICES, str(root), str(root.parents[1])], text=True, env=environment, timeout=300
  )
  results = json.loads(output)
  plain = train(Classifier(rngs=nnx.Rngs(1), width=4096), ema_decay=0.9)
  expected = plain.curve('train_loss')[1] + plain.curve('validation_accuracy')[1]
  assert results['devices'] == 8
  for name in ('one', 'data', 'model'):
    np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-5)
  assert results['data_shard'] == [7, 4096] and results['model_shard'] == [7, 1024]
  assert "'model'" in results['model_spec'][0] and "'model'" not in results['model_spec'][1]
  assert 'multiple of the number of devices' in results['uneven']


def test_weight_decay_spares_biases_and_norm_scales_only():
  params = {
    'latents': jnp.ones((3, 5)),
    'norm': {'scale': jnp.ones(5), 'bias': jnp.ones(5)},
    'dense': {'kernel': jnp.ones((5, 5))},
  }
  assert optimizers.decay_mask(params) == {
    'latents': True,
    'norm': {'scale': False, 'bias': False},
    'dense': {'kernel': True},
  }
  model = Classifier(rngs=nnx.Rngs(0))
  assert nnx.to_pure_dict(optimizers.decay_mask(nnx.state(model, nnx.Param)))['head'] == {'bias': False, 'kernel': True}
