"""Every test runs with strict dtype and rank promotion, full float32, figures without a screen, a compilation cache."""

from __future__ import annotations

import gc
import importlib.metadata
import os
from pathlib import Path

# Tests compile thousands of small programs and run each a few times, so compiling is most of their time. CPU-seconds of
# compiling the gradient of a small Perceiver AR: 7.3 as users have it, 2.2 with code from LLVM that nobody optimised,
# 0.9 with the older emitters of loops besides (newer jaxlib has only the new ones, and ends at a flag that it does not
# know). What is computed and every tolerance stay as they are. The kernels of the smoke runs inherit the variable, and
# their cache has other entries than that of a user's runs.
if 'xla_backend_optimization_level' not in (given := os.environ.get('XLA_FLAGS', '')):
  flags = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    flags += ' --xla_cpu_use_fusion_emitters=false'
  os.environ['XLA_FLAGS'] = f'{given} {flags}'.strip()

import jax

import tests.typechecker  # noqa: F401 -- the import hook of jaxtyping looks it up as an attribute of `tests`
from perceiver_lib.training.host import enable_compilation_cache

os.environ.setdefault('MPLBACKEND', 'Agg')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')
enable_compilation_cache()
# Tracing makes millions of small objects that live on; looking through them for cycles is a twentieth of the time.
gc.freeze()
gc.set_threshold(200_000, 50, 50)


def pytest_collection_modifyitems(config, items) -> None:
  """Files that take longest first: workers take a file at a time, and at the end none waits for another's longest.

  With `-m gpu` nothing is left to run where there is no accelerator.
  """
  if config.getoption('markexpr') == 'gpu' and jax.default_backend() == 'cpu':
    items.clear()
  heavy = ('models', 'generation', 'experiments', 'attention')

  def place(item) -> int:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return 0 if item.get_closest_marker('notebook') else 1 if folder in heavy else 2

  items.sort(key=place)
