"""Where a run happened: versions, devices, commit. And the environment variables that every kernel starts with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.errors import RequestError

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets', 'numpy', 'papermill')


class Stamp(dict):
  """A dict that a notebook prints as an aligned list."""

  def __repr__(self) -> str:
    width = max(map(len, self))
    return '\n'.join(f'{name:<{width}}  {value}' for name, value in self.items())


def environment_stamp(root: Path) -> Stamp:
  """What a reader needs to judge a number: Python, packages, devices, compiler flags, commit. Initialises JAX.

  Raises:
    RequestError: if JAX has no device of the platform that was asked for.
  """
  import jax

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the bare assertion: a CUDA plug-in without a driver
    asked = os.environ.get('JAX_PLATFORMS', '')
    raise RequestError(
      f'JAX finds no device with JAX_PLATFORMS={asked!r}: {str(error) or "its plug-in or driver is missing"}. '
      'Install what this platform needs, or leave the variable out.'
    ) from error
  commit, dirty = git_commit(root)
  return Stamp(
    python=platform.python_version(),
    executable=sys.executable,
    platform=platform.platform(),
    **{package: version for package in _PACKAGES if (version := _version(package))},
    device=device_name(),
    devices=', '.join(str(device) for device in jax.devices()),
    cpu=cpu_name(),
    cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    xla_flags=os.environ.get('XLA_FLAGS', ''),
    compilation_cache=jax.config.jax_compilation_cache_dir or '',
    commit=commit,
    uncommitted_changes=dirty,
  )


def device_name() -> str:
  """What computed, for people: the processor with its cores, or the accelerators by name."""
  import jax

  devices = jax.devices()
  if devices[0].platform == 'cpu':
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    simulated = f', {len(devices)} simulated devices' if len(devices) > 1 else ''
    return f'CPU, {cores} cores ({cpu_name()}){simulated}'
  return f'{len(devices)} x {devices[0].device_kind}'


def cpu_name() -> str:
  try:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def git_commit(root: Path) -> tuple[str, bool]:
  """The commit of a checkout and whether tracked files differ from it; ('unknown', False) outside of git."""

  def git(*arguments: str) -> str:
    done = subprocess.run(['git', '-C', str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

  try:
    return git('rev-parse', '--short=12', 'HEAD'), bool(git('status', '--porcelain', '--untracked-files=no'))
  except (OSError, subprocess.CalledProcessError):
    return 'unknown', False


def commit_name(environment: Mapping[str, Any]) -> str:
  """The commit of a stamp, with a "+" where files differed from it."""
  return environment['commit'] + ('+' if environment['uncommitted_changes'] else '')


def kernel_environment(profile: str = '') -> dict[str, str]:
  """The variables of a kernel, which must be set before it imports JAX. What the user has set stays.

  Smoke runs two steps of everything, and most of their time is compiling: their programs are not optimized.
  """
  package_parent = str(Path(__file__).resolve().parents[2])
  defaults = {
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # two kernels on one accelerator would each take most of its memory
    'JUPYTER_PREFER_ENV_PATH': '1',  # else a user-level python3 kernel could stand in for this environment's
    'PYDEVD_DISABLE_FILE_VALIDATION': '1',
    'TF_CPP_MIN_LOG_LEVEL': '2',
  } | ({'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'} if profile == 'smoke' else {})
  search = os.environ.get('PYTHONPATH')
  return {
    **defaults,
    **os.environ,
    'PYTHONPATH': os.pathsep.join([package_parent, search]) if search else package_parent,
    'PYTHONUNBUFFERED': '1',
  }


def without_grammars() -> None:
  """Before nbformat or papermill is imported: their jsonschema else compiles the grammar of IRIs for two seconds."""
  sys.modules.setdefault('rfc3987_syntax', None)


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
