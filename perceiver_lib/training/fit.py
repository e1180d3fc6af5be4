"""Training in three thoughts: check what was asked for, resume what a killed process left, loop over one jitted step.

The step owns its state (`training.step`); the host hardly notices the loop around it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from perceiver_lib.settings import check_counts, check_numbers
from perceiver_lib.training import checkpoints, sharding
from perceiver_lib.training.checkpoints import Checkpointing
from perceiver_lib.training.host import keep_freed_memory
from perceiver_lib.training.progress import Progress
from perceiver_lib.training.step import Batch, LossFn, functional_loss, initial_state, make_train_step

_KEPT = ('num_steps', 'history', 'compile_seconds', 'train_seconds', 'evaluate_seconds')
"""Of a `FitResult`, beside the weights that a training leaves."""


class NonFiniteLossError(FloatingPointError):
  """Training met a NaN or infinite loss or gradient; that update was not applied.

  Attributes:
    step: the first bad step, counted from 1: the update made from batch number step - 1.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
  """What came out of `fit`.

  Attributes:
    model: a new module with the trained weights (their moving average if asked for).
    history: records in order of step: 'step', 'seconds' of training so far, 'train_<name>' = mean over the steps since
      the record before, 'train_loss', 'train_gradient_norm', and what `evaluate` returned. It survives a resume.
    notes: sentences on what was not as usual, such as a checkpoint that could not be used.
    num_steps: updates in all.
    resumed_from: the step of the checkpoint that training went on from, 0 = from scratch.
    compile_seconds: tracing and compiling the step, over all resumed parts.
    train_seconds: steps only, without compiling, evaluating and checkpoints; over all resumed parts.
    evaluate_seconds: in `evaluate`, over all resumed parts.
    examples_per_second: trained in this process; 0 if nothing was left to do.
  """

  model: nnx.Module
  history: list[dict[str, Any]]
  notes: tuple[str, ...]
  num_steps: int
  resumed_from: int
  compile_seconds: float
  train_seconds: float
  evaluate_seconds: float
  examples_per_second: float

  def curve(self, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric.

    Raises:
      KeyError: with the names there are.
    """
    records = [record for record in self.history if name in record]
    if not records:
      names = sorted({key for record in self.history for key in record} - {'step'})
      raise KeyError(f'no metric {name!r} was recorded; there are {", ".join(names)}')
    return [record['step'] for record in records], [record[name] for record in records]


@checkpoints.releasing_locks()
def fit(
  model: nnx.Module,
  loss_fn: LossFn,
  batches: Callable[[int], Iterator[Batch]],
  *,
  optimizer: optax.GradientTransformation | optax.MultiSteps,
  num_steps: int,
  seed: int,
  evaluate: Callable[[nnx.Module], Mapping[str, Any]] | None = None,
  evaluations: int = 1,
  log_every: int | None = None,
  checkpoint: Checkpointing | None = None,
  ema_decay: float | None = None,
  mesh: jax.sharding.Mesh | None = None,
  progress: str = 'auto',
) -> FitResult:
  """Trains a copy of `model`; `model` itself keeps its weights and stays usable.

  Same model, batches and seed on the same machine: the same metrics to the last digit, also when the process was
  killed and run again with the same `checkpoint`.

  Args:
    model: its parameters (`nnx.Param`) are trained; its other variables (running statistics) are carried along.
    loss_fn: (model, batch, rngs) -> (scalar loss, dict of scalars). `rngs` is an `nnx.Rngs` whose stream 'dropout' is
      all the randomness of a step (crops, augmentation, dropout); evaluation passes none, which switches dropout off.
    batches: start_step -> iterator of the batches from that step on (0 is also asked for an example), every one of the
      same shapes and freshly allocated (transfers may read them later). With several processes, each yields its share.
    optimizer: any optax transformation; for gradient accumulation wrap it in `optax.MultiSteps`.
    num_steps: updates in all, those before a resume included.
    seed: of the dropout key, which is folded with the step.
    evaluate: model -> dict of floats, or of small arrays, which the history keeps as lists. It must not keep the model:
      its buffers are reused by the next step.
    evaluations: how often `evaluate` is called: every num_steps // evaluations steps, and after the last step.
    log_every: steps a history record; by default about 100 records.
    checkpoint: where to keep what a killed training goes on from, or the weights to use in its place (`run.checkpoint`
      makes one in a notebook).
    ema_decay: keep a moving average of the parameters with this decay (less in the first steps), evaluate it and
      return it.
    mesh: batches are split over all its axes; arrays of at least 2^14 elements are also split over an axis named
      'model', if there is one. Axes must be of type Auto.
    progress: see `training.progress`.

  Raises:
    NonFiniteLossError: NaN or infinity in a loss or gradient, found at the next record at the latest.
    checkpoints.CheckpointError: if a checkpoint cannot be written.
    ValueError: for batches, losses or settings that do not fit.
  """
  _check(num_steps, evaluate, evaluations, log_every, ema_decay)
  if checkpoint is not None and not checkpoint.train:
    return _trained_before(model, checkpoint.weights, progress)
  keep_freed_memory()
  log_every = log_every or max(1, num_steps // 100)
  evaluate_every = max(1, num_steps // evaluations)

  if not callable(batches):
    raise ValueError(f'batches must be a function from a step to an iterator; got a {type(batches).__name__}.')
  example = _next_batch(batches(0), 1)
  num_examples = max(np.shape(value)[0] for value in example.values() if np.ndim(value))
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  loss_of = functional_loss(graphdef, loss_fn)
  state = initial_state(params, rest, optimizer, seed, loss_of, example, ema=ema_decay is not None)
  place = (lambda batch: batch) if mesh is None else sharding.batch_placer(mesh, num_examples)
  if mesh is not None:
    shardings = jax.tree.map(lambda leaf: sharding.state_sharding(mesh, leaf.shape), state)
    # Not device_put, which refuses typed keys on a mesh of several processes.
    state = jax.jit(lambda state: state, out_shardings=shardings)(state)

  past = _resume(checkpoint, state, seed=seed, num_steps=num_steps, log_every=log_every, ema_decay=ema_decay)
  store, history, spent = past.store, past.history, dict(past.spent)
  bar = Progress(num_steps, start=past.step, mode=progress)
  for note in past.notes:
    bar.say(note)
  if past.step:
    bar.say(f'Resuming from the checkpoint of step {past.step}.')

  # Between steps the state is a flat list: taking nnx.State apart in Python costs more than dispatching a small step.
  leaves, structure = jax.tree.flatten(past.state)
  del state

  def current_model(state: Mapping[str, Any]) -> nnx.Module:
    return nnx.merge(graphdef, state['params'] if ema_decay is None else state['ema'], state['rest'])

  if past.step < num_steps:
    begin = time.perf_counter()
    step_fn = _compiled(make_train_step(loss_of, optimizer, ema_decay, log_every), leaves, structure, place(example))
    seconds = time.perf_counter() - begin
    spent['compile'] += seconds
    bar.say(f'Compiled the training step in {seconds:.1f} s.')

  stream = batches(past.step)
  bar.restart_clock()
  clock = time.perf_counter()
  for step in range(past.step + 1, num_steps + 1):
    batch = _next_batch(stream, step)
    try:
      leaves = step_fn(leaves, place(batch))
    except TypeError as error:
      raise ValueError(
        f'All batches must have the shapes of the first, {_shapes(example)}; batch {step - 1} has {_shapes(batch)}.'
      ) from error
    last = step == num_steps
    log = last or step % log_every == 0
    assess = evaluate is not None and (last or step % evaluate_every == 0)
    save = store is not None and (last or step % past.save_every == 0)
    if not (log or assess or save or bar.due()):
      continue

    state = jax.tree.unflatten(structure, leaves)
    means = _window_means(state, step, log_every, store)
    spent['train'] += time.perf_counter() - clock
    record = {'step': step, 'seconds': spent['train']} | (means if log else {})
    if last or bar.due():
      bar.report(step, {'loss': means['train_loss']})
    if assess:
      begin = time.perf_counter()
      record |= {name: np.asarray(value).tolist() for name, value in evaluate(current_model(state)).items()}
      spent['evaluate'] += time.perf_counter() - begin
    if log or assess:
      history.append(record)
    if save:
      store.save(step, state, {'history': history, 'spent': spent})
    clock = time.perf_counter()

  seconds = spent['train'] - past.spent['train']
  result = FitResult(
    model=current_model(jax.tree.unflatten(structure, leaves)),
    history=history,
    notes=tuple(past.notes),
    num_steps=num_steps,
    resumed_from=past.step,
    compile_seconds=spent['compile'],
    train_seconds=spent['train'],
    evaluate_seconds=spent['evaluate'],
    examples_per_second=(num_steps - past.step) * num_examples * jax.process_count() / seconds if seconds else 0.0,
  )
  if checkpoint is not None and checkpoint.weights is not None:
    from perceiver_lib.training.weights import save_weights

    record = {name: getattr(result, name) for name in _KEPT}
    save_weights(result.model, checkpoint.weights, dtype=np.float16, record=record)
  return result


def _check(
  num_steps: int, evaluate: Callable | None, evaluations: int, log_every: int | None, ema_decay: float | None
) -> None:
  check_counts({'num_steps': num_steps, 'evaluations': evaluations, 'log_every': log_every})
  check_numbers({'ema_decay': ema_decay}, least=0, below=1)
  if evaluations > 1 and evaluate is None:
    raise ValueError('evaluations does nothing without evaluate; give it or drop it.')


def _trained_before(model: nnx.Module, path: str | os.PathLike, progress: str) -> FitResult:
  """The result of the training that wrote these weights, rounded to half precision."""
  from perceiver_lib.training.weights import load_record, load_weights

  record = load_record(path)
  steps = record['num_steps']
  note = f'Nothing is trained: these are the float16 weights of {os.path.basename(path)}, after {steps:,} steps.'
  Progress(steps, start=steps, mode=progress).say(note)
  model = load_weights(model, path)
  return FitResult(model=model, notes=(note,), resumed_from=steps, examples_per_second=0.0, **record)


class _Past(NamedTuple):
  """What earlier processes of a training left: its state after `step` updates, and what was recorded until then."""

  state: Mapping[str, Any]
  step: int
  history: list[dict[str, Any]]
  spent: Mapping[str, float]
  notes: list[str]
  store: checkpoints.CheckpointStore | None
  save_every: int


def _resume(checkpoint: Checkpointing | None, state: Mapping[str, Any], *, num_steps: int, **settings: Any) -> _Past:
  """The newest usable checkpoint of this very training, or its beginning."""
  spent = {'compile': 0.0, 'train': 0.0, 'evaluate': 0.0}
  new = _Past(state, step=0, history=[], spent=spent, notes=[], store=None, save_every=0)
  if checkpoint is None:
    return new
  identity = checkpoints.fingerprint(
    given=checkpoint.fingerprint, num_steps=num_steps, state=checkpoints.structure(state), **settings
  )
  store = checkpoints.CheckpointStore(checkpoint.directory, identity)
  store.lock()
  new = new._replace(store=store, save_every=checkpoint.every or max(1, num_steps // 10))
  if not checkpoint.resume:
    note = store.set_aside()
    return new._replace(notes=[note] if note else [])
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
  found, notes = store.restore(abstract)
  if found is None:
    return new._replace(notes=notes)
  return new._replace(state=found.state, step=found.step, notes=notes, **found.record)


def _compiled(train_step: Callable, leaves: list[jax.Array], structure: Any, example: Batch) -> Callable:
  """The step on the flat state, which it takes over; shardings are pinned, or the compiler would choose others."""

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=[leaf.sharding for leaf in leaves])
  def flat_step(leaves: list[jax.Array], batch: Batch) -> list[jax.Array]:
    new, new_structure = jax.tree.flatten(train_step(jax.tree.unflatten(structure, leaves), batch))
    if new_structure != structure:
      raise ValueError('loss_fn must not add variables to the model or take any away; capture intermediates elsewhere.')
    return new

  if jax.config.jax_debug_nans or jax.config.jax_debug_infs or jax.config.jax_disable_jit:
    # These look at single operations, which a compiled step does not show; and they may need its inputs again.
    return functools.partial(flat_step.__wrapped__)
  return flat_step.lower(leaves, example).compile()


def _window_means(state, step: int, log_every: int, store: checkpoints.CheckpointStore | None) -> dict[str, float]:
  window, first_bad = jax.device_get((state['window'], state['first_bad']))
  if bad := int(first_bad['step']):
    paths = store.paths() if store is not None else []
    saved = f'the last good checkpoint is {paths[-1]}' if paths else 'there is no checkpoint to go back to'
    what = f'the loss is {first_bad["loss"]}' if not np.isfinite(first_bad['loss']) else 'the gradient is not finite'
    raise NonFiniteLossError(
      f'Training stopped at step {bad}, noticed at step {step}: {what}; that update was not applied, and {saved}. '
      f'Check batch {bad - 1} for NaN and labels out of range, then try a lower learning rate, more warm-up steps or '
      "stronger clipping; jax.config.update('jax_debug_nans', True) shows the operation.",
      bad,
    )
  count = (step - 1) % log_every + 1
  return {f'train_{name}': float(total) / count for name, total in window.items()}


def _next_batch(stream: Iterator[Batch], step: int) -> Batch:
  if not isinstance(stream, Iterator):
    raise ValueError(f'batches must return an iterator of batches, such as iter([...]); got a {type(stream).__name__}.')
  try:
    batch = next(stream)
  except StopIteration:
    raise ValueError(f'batches ended before step {step}; it must yield as many batches as there are steps.') from None
  if not isinstance(batch, Mapping):
    raise ValueError(f'A batch must be a dict of arrays by name; batch {step - 1} is a {type(batch).__name__}.')
  return batch


def _shapes(batch: Batch) -> str:
  return ', '.join(f'{name} {np.shape(value)} {np.asarray(value).dtype}' for name, value in batch.items())
