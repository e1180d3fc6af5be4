"""Kills and damage at random, for long: `make soak`, or `python -m tests.soak --kills 200 --damages 300`.

Every trial must end in one of two ways: `same`, all digits as those of an undisturbed run, or `said`, one sentence of
an error. Anything else is a fault of the library, and the command ends with exit code 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import tests.conftest  # noqa: F401 -- programs that compile in no time, here and in all processes that are started
from perceiver_lib.experiments import report
from perceiver_lib.experiments.environment import kernel_environment
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import write_json
from perceiver_lib.experiments.results import TABLE_END, TABLE_START, publish
from perceiver_lib.files import DamagedFile, read_json
from perceiver_lib.training.checkpoints import CheckpointError
from perceiver_lib.training.host import enable_compilation_cache
from tests.experiments.sequence import FIGURE, START, write_notebook
from tests.training import test_fit

SAID = (CheckpointError, DamagedFile, RequestError)

TRAINING = """
import itertools, time
import numpy as np
from flax import nnx
from perceiver_lib import cross_entropy, fit
from perceiver_lib.training.optimizers import adamw_warmup_cosine
def loss(model, batch, rngs):
  return cross_entropy(model(batch['x']), batch['label']), {}
def batches(start):
  for step in itertools.count(start):
    time.sleep(0.05)
    x = np.random.default_rng(step).normal(size=(8, 5)).astype(np.float32)
    yield {'x': x, 'label': x.argmax(1)}
found = fit(nnx.Linear(5, 5, rngs=nnx.Rngs(seed)), loss, batches, num_steps=40, seed=seed, log_every=1,
            optimizer=adamw_warmup_cosine(0.03, 40, warmup_steps=3), checkpoint=run.checkpoint('main', every=3))
run.log('accuracy', found.history[-1]['train_loss'])"""


def damage(path: Path, chance: random.Random) -> str:
  """Does to a file what disks, editors and killed processes do, and says what."""
  content = path.read_bytes()
  place = chance.randrange(max(len(content), 1))
  kind = chance.choice(('flipped', 'cut', 'emptied', 'continued', 'gone', 'overwritten'))
  if kind == 'gone':
    path.unlink()
    return kind
  changed = {
    'flipped': content[:place] + bytes(byte ^ 1 << chance.randrange(8) for byte in content[place : place + 1]),
    'cut': content[:place],
    'emptied': b'',
    'continued': content + chance.randbytes(chance.randrange(1, 50)),
    'overwritten': content[:place] + chance.randbytes(len(content[place : place + 32])),
  }[kind]
  if kind in ('flipped', 'overwritten'):
    changed += content[len(changed) :]
  path.write_bytes(changed)
  return kind


def ended(trial: Callable[[], bool]) -> str:
  """How a trial ended, which is True for the same digits."""
  try:
    return 'same' if trial() else 'DIFFERS'
  except SAID as error:
    return 'said' if str(error).strip() else 'SAID NOTHING'
  except Exception as error:
    return f'TRACEBACK {type(error).__name__}: {error}'


def damaged_checkpoints(place: Path, chance: random.Random, count: int) -> Iterator[str]:
  """Trainings that resume from checkpoints of which one file is damaged."""
  whole = test_fit.measured(test_fit.resumable(place / 'whole', progress='silent'))
  for number in range(count):
    copy = place / str(number)
    shutil.copytree(place / 'whole', copy)
    # The last checkpoint is of the last step; without it there is something to train.
    shutil.rmtree(max(copy.glob('*/step_*')))
    damage(chance.choice(sorted(path for path in copy.rglob('*') if path.is_file())), chance)
    yield ended(lambda copy=copy: test_fit.measured(test_fit.resumable(copy, progress='silent')) == whole)
    shutil.rmtree(copy)


def damaged_runs(place: Path, chance: random.Random, count: int) -> Iterator[str]:
  """Reports and results made of a run of which one file is damaged: what was published before stays, or is the same."""
  from tests.experiments.test_results import write_run

  (place / 'README.md').write_text(f'{TABLE_START}\n{TABLE_END}\n')
  publish(write_run(place / 'run', ('01_images', '02_text')), place)
  published = {path: path.read_bytes() for path in [*place.glob('*.md'), *(place / 'figures').iterdir()]}

  def use(copy: Path) -> bool:
    for step in (report.write_report, lambda run: publish(run, place)):
      step(copy)
    return True

  for number in range(count):
    copy = shutil.copytree(place / 'run', place / str(number))
    damage(chance.choice(sorted(path for path in copy.rglob('*') if path.is_file())), chance)
    outcome = ended(lambda copy=copy: use(copy))
    changed = [path for path, content in published.items() if not path.exists() or path.read_bytes() != content]
    yield 'PUBLISHED CHANGED' if changed else outcome
    for path in changed:
      path.write_bytes(published[path])
    shutil.rmtree(copy)


def killed_trainings(place: Path, chance: random.Random, count: int) -> Iterator[str]:
  """A training process that is killed at any moment and started again until it ends; one outcome a kill.

  What a kill lost shows in the digits of the training that ends.
  """
  whole = test_fit.measured(test_fit.resumable(place / 'whole', progress='silent'))
  # Processes begin as copies of one that has imported what takes seconds.
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.training.test_fit'])
  number = kills = seconds = 0
  while True:
    begin, kill = time.monotonic(), seconds and kills < count
    process = context.Process(target=_train_slowly, args=(place / str(number),))
    process.start()
    process.join(chance.uniform(0, seconds) if kill else None)
    if process.is_alive():
      process.kill()
      process.join()
      kills += 1
      yield 'same'
      continue
    seconds = seconds or time.monotonic() - begin
    if process.exitcode != 0:
      yield f'EXIT CODE {process.exitcode}'
      return
    if read_json(place / str(number) / 'measured.json') != whole:
      yield 'DIFFERS'
    number += 1
    if kills == count:
      return


def _train_slowly(place: Path) -> None:
  enable_compilation_cache()

  def slow(start_step: int) -> Iterator[Any]:
    for batch in test_fit.batches(start_step):
      time.sleep(0.03)
      yield batch

  found = test_fit.resumable(place, batches=slow, progress='silent')
  write_json(place / 'measured.json', test_fit.measured(found))


def killed_runs(place: Path, chance: random.Random, count: int) -> Iterator[str]:
  """Runs whose runner, papermill process or kernel is killed at any moment, and which are resumed until they end."""
  write_notebook(place / 'notebooks', '00_trains', START, TRAINING, FIGURE, 'run.finish()')
  command = [sys.executable, '-m', 'perceiver_lib', 'reproduce', '--notebooks', str(place / 'notebooks')]
  number = kills = seconds = 0
  whole = None
  while True:
    run = place / f'run-{number}'
    resumable = (run / 'run.json').exists()
    if run.exists() and not resumable:  # killed before it had a record: nothing to resume
      shutil.rmtree(run)
    how = ['--resume', str(run)] if resumable else ['--profile', 'smoke', '--run-dir', str(run)]
    begin, kill = time.monotonic(), seconds and kills < count
    process = subprocess.Popen(
      command + how, env=kernel_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed = False
    try:
      output, _ = process.communicate(timeout=chance.uniform(0.5, seconds) if kill else None)
    except subprocess.TimeoutExpired:
      family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
      with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(family), signal.SIGKILL)
        killed = True
      output, _ = process.communicate()
      kills += killed
    if 'Traceback (most' in output:
      yield f'TRACEBACK {output[-300:]}'
    elif process.returncode == 0:
      seconds = seconds or time.monotonic() - begin
      number += 1
      value = read_json(run / '00_trains' / 'manifest.json')['metrics']['accuracy']['value']
      whole = value if whole is None else whole
      if value != whole:
        yield 'DIFFERS'
      elif killed:
        yield 'same'
      if kills >= count:
        return
    elif killed:
      yield 'same' if process.returncode == -signal.SIGKILL else 'said'
    else:
      yield f'EXIT CODE {process.returncode}: {output[-300:]}'
      return


PARTS = {
  'damaged checkpoints': (damaged_checkpoints, 'damages'),
  'damaged runs': (damaged_runs, 'damages'),
  'killed trainings': (killed_trainings, 'kills'),
  'killed runs': (killed_runs, 'kills'),
}


def main() -> int:
  arguments = argparse.ArgumentParser(description=__doc__)
  arguments.add_argument('--kills', type=int, default=200)
  arguments.add_argument('--damages', type=int, default=300)
  arguments.add_argument('--seed', type=int, default=0)
  given = arguments.parse_args()
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  faults = 0
  for name, (part, kind) in PARTS.items():
    outcomes: collections.Counter[str] = collections.Counter()
    if not (count := getattr(given, kind) // 2):
      continue
    with tempfile.TemporaryDirectory() as folder:
      try:
        for outcome in part(Path(folder), random.Random(given.seed), count):
          outcomes[outcome] += 1
      finally:  # also of what was interrupted
        print(f'{name:<20} ' + ', '.join(f'{number} {outcome}' for outcome, number in outcomes.items()), flush=True)
    faults += sum(number for outcome, number in outcomes.items() if outcome not in ('same', 'said'))
  print(f'{faults} faults')
  return int(faults > 0)


if __name__ == '__main__':
  sys.exit(main())
