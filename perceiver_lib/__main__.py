"""The command line: `python -m perceiver_lib COMMAND`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from perceiver_lib.experiments import errors
from perceiver_lib.experiments.errors import RequestError, explain_os_error
from perceiver_lib.experiments.files import project_root
from perceiver_lib.experiments.profiles import PROFILES
from perceiver_lib.files import DamagedFile

_EXIT_CODES = 'exit codes:\n' + ''.join(f'  {code:<4} {means}\n' for code, (means, _) in errors.EXIT_CODES.items())


def list_notebooks(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments.notebooks import discover

  for notebook in discover(arguments.notebooks):
    print(f'{notebook.name}\n  {notebook.title}')
    for parameter in notebook.parameters.values():
      declaration = f'{parameter.name}: {parameter.type.__name__} = {parameter.default!r}'
      print(f'    {declaration:<40} {parameter.help}'.rstrip())
  return errors.EXIT_OK


def reproduce(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments import report, runner
  from perceiver_lib.experiments.compare import spread_over

  overrides = dict(_assignment(text) for text in arguments.set)
  seeds = _entries(arguments.seeds)
  if seeds and (arguments.resume or 'seed' in overrides):
    raise RequestError('--seeds makes a run of each seed; leave --resume and --set seed out.')
  folders, results = [], []
  for seed in seeds or [None]:
    folder, ended = runner.reproduce(
      arguments.notebooks,
      profile=arguments.profile,
      only=_entries(arguments.only),
      overrides=overrides | ({} if seed is None else {'seed': seed}) or None,
      run_dir=arguments.run_dir if seed is None or not arguments.run_dir else arguments.run_dir / f'seed-{seed}',
      resume=arguments.resume,
      time_limit=arguments.time_limit,
      budget=arguments.budget,
      jobs=arguments.jobs,
    )
    print(report.learned(_short(folder)))
    folders.append(folder)
    results += ended
  if len(folders) > 1:
    print('\n' + spread_over(folders))
  return runner.exit_code(results)


def write_report(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments import report

  folder = _run_folder(arguments)
  report.write_report(folder)
  print(report.learned(_short(folder)))
  return errors.EXIT_OK


def publish_figures(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments import results

  folder = _run_folder(arguments)
  written = results.publish(folder, arguments.notebooks.parent)
  print(f'{len(written)} files in figures/, results.json and the README table are those of {_short(folder)}.')
  return errors.EXIT_OK


def write_site(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments.site import write_site

  held = write_site(_run_folder(arguments), arguments.out, arguments.notebooks.parent)
  print(f'{len(held)} notebooks, the report and the results: open {_short(arguments.out / "index.html")} in a browser.')
  return errors.EXIT_OK


def accept(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments.accept import accept

  written, bands = accept(arguments.runs, arguments.notebooks.parent, reason=arguments.reason)
  print(f'{len(written)} files in figures/, results.json, history.jsonl and the README table are those of these runs.')
  print(f'Measured bands renewed: {", ".join(bands) or "none"}.')
  return errors.EXIT_OK


def keep_weights(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments import files, results

  folder = _run_folder(arguments)
  written = results.keep_weights(folder, arguments.notebooks / files.WEIGHTS)
  print(f'{len(written)} weight files are those of {_short(folder)}: {", ".join(written)}')
  return errors.EXIT_OK


def compare(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments.compare import compare_runs

  print(compare_runs(arguments.first, arguments.second))
  return errors.EXIT_OK


def bench(arguments: argparse.Namespace) -> int:
  from perceiver_lib.experiments.bench import harness
  from perceiver_lib.experiments.bench.cases import CASES

  if arguments.list:
    print('\n'.join(f'{name}\n  {case.title}\n  {", ".join(case.contenders)}' for name, case in CASES.items()))
  else:
    harness.measure_all(CASES, arguments.cases, rounds=arguments.rounds, out=arguments.out)
  return errors.EXIT_OK


def list_released(arguments: argparse.Namespace) -> int:
  from perceiver_lib.pretrained import RELEASED

  print('\n'.join(f'{one.name:<40} {one.parameters:>11}  {one.kind}' for one in RELEASED))
  return errors.EXIT_OK


def convert(arguments: argparse.Namespace) -> int:
  from perceiver_lib.pretrained import load_pretrained

  folder = _said_in_one_sentence(lambda: load_pretrained(arguments.source).save_pretrained(arguments.folder))
  print(f"{arguments.source} under Hugging Face's names is in {folder}.")
  return errors.EXIT_OK


def verify(arguments: argparse.Namespace) -> int:
  from perceiver_lib.pretrained import verify

  print(_said_in_one_sentence(lambda: verify(arguments.source)))
  return errors.EXIT_OK


def _said_in_one_sentence(do: Callable[[], Any]) -> Any:
  from perceiver_lib.training.checkpoints import CheckpointError

  try:
    return do()
  except (CheckpointError, FileNotFoundError, ValueError) as error:
    raise RequestError(str(error)) from None


def open_lab(arguments: argparse.Namespace) -> NoReturn:
  from perceiver_lib.experiments.environment import kernel_environment

  settings = [f'--ServerApp.root_dir={arguments.notebooks.parent}']
  if os.geteuid() == 0:  # as in every container; Jupyter refuses root unless told, and asks for its token all the same
    settings += ['--allow-root', '--ServerApp.ip=127.0.0.1']
  command = [sys.executable, '-m', 'jupyterlab', *settings, *arguments.jupyter]
  os.execve(sys.executable, command, kernel_environment())


def parser() -> argparse.ArgumentParser:
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument(
    '--notebooks',
    type=_path,
    metavar='DIR',
    help='folder of the sequence (default: notebooks/ of this project)',
  )
  shape = argparse.RawDescriptionHelpFormatter
  top = argparse.ArgumentParser(prog='python -m perceiver_lib', description='The Perceiver family in JAX.')
  commands = top.add_subparsers(title='commands', required=True, metavar='COMMAND')

  def command(name: str, function: Any, purpose: str, epilog: str = '') -> argparse.ArgumentParser:
    one = commands.add_parser(
      name, parents=[common], help=purpose, description=purpose, epilog=epilog, formatter_class=shape
    )
    one.set_defaults(function=function, interrupted='Interrupted.')
    return one

  command('list', list_notebooks, 'list the notebooks and the parameters that --set can change')

  profiles = 'profiles:\n' + ''.join(f'  {name:<6} {meaning}\n' for name, meaning in PROFILES.items())
  run = command('reproduce', reproduce, 'run the notebooks and write a report page', f'{profiles}\n{_EXIT_CODES}')
  resume = 'Interrupted; continue with: python -m perceiver_lib reproduce --resume <run folder>'
  run.set_defaults(interrupted=resume)
  run.add_argument('--profile', metavar='NAME', help='smoke, demo (default), full or paper')
  run.add_argument('--only', metavar='NN', action='append', default=[], help='numbers or names, separated by commas')
  run.add_argument('--set', metavar='NAME=VALUE', action='append', default=[], help='change a parameter; repeatable')
  seeds = 'one run a seed, and the spread over them; separated by commas'
  run.add_argument('--seeds', metavar='N', action='append', default=[], help=seeds)
  run.add_argument('--run-dir', type=_path, metavar='DIR', help='new or empty folder for this run (default: runs/<id>)')
  run.add_argument('--resume', type=_path, metavar='DIR', help='complete an earlier run; what is complete there stays')
  run.add_argument('--time-limit', type=float, metavar='SECONDS', help='wall clock a notebook (default: by profile)')
  run.add_argument('--budget', type=float, metavar='SECONDS', help='wall clock of the whole run (default: no bound)')
  run.add_argument('--jobs', type=int, default=1, metavar='N', help='notebooks at a time, memory allowing (default 1)')

  for name, function, purpose in (
    ('report', write_report, 'write the report page of a run again and show what it learned'),
    ('figures', publish_figures, 'make a complete run the accepted one: figures/, results.json, table in README.md'),
    ('site', write_site, 'write a static site of a run: notebooks, report and results, to be opened without network'),
    ('weights', keep_weights, 'keep the trained weights of a complete run that notebooks/weights/index.json names'),
  ):
    one = command(name, function, purpose)
    one.add_argument('--run', type=_path, metavar='DIR', help='folder of the run (default: the newest in runs/)')
    if name == 'site':
      one.add_argument('--out', type=_path, default=Path('site'), metavar='DIR', help='where to write (default: site/)')

  good = command('accept', accept, 'publish complete runs, one a seed, and record why; measured bands follow them')
  good.add_argument('runs', nargs='+', type=_path, metavar='RUN', help='folder of a run; the first is published')
  good.add_argument('--reason', required=True, help='why, in a sentence')

  two = command('compare', compare, 'show two runs side by side: metrics, and what differs in settings and environment')
  two.add_argument('first', type=_path, metavar='RUN', help='folder of a run')
  two.add_argument('second', type=_path, metavar='OTHER', help='folder of another')

  timing = command(
    'bench',
    bench,
    'time this library and what else is installed, in turn',
    'The other side: pip install -e ".[bench]", and for perceiver-io, which asks for an old Python:\n'
    '  pip install --no-deps --ignore-requires-python perceiver-io==0.11.0',
  )
  timing.set_defaults(
    interrupted='Interrupted; the cases printed so far are complete, and in the file of --out if given.'
  )
  timing.add_argument('cases', nargs='*', metavar='CASE', help='cases to measure (default: all)')
  timing.add_argument('--list', action='store_true', help='list the cases and leave')
  timing.add_argument('--rounds', type=int, default=5, help='timed calls of each contender, in turn (default 5)')
  timing.add_argument('--out', type=_path, metavar='FILE', help='JSON to write; cases not measured now stay in it')

  released = command('pretrained', None, 'list, convert or verify released weights')
  tasks = released.add_subparsers(title='tasks', required=True, metavar='TASK')
  source = 'id on the hub, folder, safetensors, pytorch_model.bin or an original pickle of DeepMind'
  for name, function, purpose in (
    ('list', list_released, 'list what is released, and where'),
    ('convert', convert, "write any weights of Perceiver IO as safetensors under Hugging Face's names"),
    ('verify', verify, 'load weights whole, and say what they are, with their hash'),
  ):
    task = tasks.add_parser(name, help=purpose, description=purpose)
    task.set_defaults(function=function)
    if name != 'list':
      task.add_argument('source', metavar='SOURCE', help=source)
    if name == 'convert':
      task.add_argument('folder', type=Path, metavar='FOLDER', help='where to write model.safetensors and config.json')

  lab = command('lab', open_lab, 'open JupyterLab with the kernel and the settings of this environment')
  lab.add_argument('jupyter', nargs='*', metavar='ARGUMENT', help='passed on to JupyterLab, after --')
  return top


def main(argv: Sequence[str] | None = None) -> int:
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name) or open(os.devnull, 'w')  # noqa: SIM115 (closed, as services do; open to the end)
    stream.reconfigure(errors='backslashreplace')
    setattr(sys, name, stream)
  arguments = parser().parse_args(argv)
  signal.signal(signal.SIGTERM, _interrupt)
  try:
    arguments.notebooks = (arguments.notebooks or project_root() / 'notebooks').resolve()
    code = arguments.function(arguments)
    sys.stdout.flush()  # here, so that a reader who has left is not first met at the interpreter's end
    return code
  except BrokenPipeError:
    # As `| head` leaves: no word, and nothing more to flush; the status is that of a tool which SIGPIPE ended.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return errors.EXIT_BROKEN_PIPE
  except (RequestError, DamagedFile) as error:
    return _say(str(error), errors.EXIT_BAD_REQUEST)
  except OSError as error:
    option = '--run-dir' if 'run_dir' in arguments and arguments.resume is None else ''
    return _say(explain_os_error(error, option), errors.EXIT_CANNOT_WRITE)
  except ImportError as error:
    return _say(f'{error}: install the notebook side with: pip install -r requirements.txt', errors.EXIT_BAD_REQUEST)
  except KeyboardInterrupt as error:
    return _say(str(error) or arguments.interrupted, errors.EXIT_INTERRUPTED)


def _say(sentence: str, code: int) -> int:
  print(sentence, file=sys.stderr)
  return code


def _interrupt(*_: Any) -> NoReturn:
  """Not by way of SIGINT, which a shell lets its background jobs ignore."""
  raise KeyboardInterrupt


def _path(text: str) -> Path:
  return Path(text).expanduser()


def _entries(given: Sequence[str]) -> list[str]:
  return [entry.strip() for entry in ','.join(given).split(',') if entry.strip()]


def _assignment(text: str) -> tuple[str, str]:
  name, equals, value = text.partition('=')
  if not equals or not name.strip():
    raise RequestError(f'--set takes NAME=VALUE; got {text!r}.')
  return name.strip(), value.strip()


def _run_folder(arguments: argparse.Namespace) -> Path:
  from perceiver_lib.experiments.report import latest_run

  return arguments.run or latest_run(arguments.notebooks.parent / 'runs')


def _short(folder: Path) -> Path:
  return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


if __name__ == '__main__':
  sys.exit(main())
