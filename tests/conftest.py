"""Every test runs with strict dtype and rank promotion, a figure backend without a screen, and a compilation cache."""

from __future__ import annotations

import os

# Tests compile thousands of small programs and run each a few times, so compiling is most of their time: code from LLVM
# that nobody optimised is ready a third sooner. What XLA does to the graph, and every tolerance, stay as they are. The
# kernels of the smoke runs inherit the variable, and their cache has other entries than that of a user's runs.
if 'xla_backend_optimization_level' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'.strip()

import jax

import tests.typechecker  # noqa: F401 -- the import hook of jaxtyping looks it up as an attribute of `tests`
from perceiver_lib.training.host import enable_compilation_cache

os.environ.setdefault('MPLBACKEND', 'Agg')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
enable_compilation_cache()


def pytest_collection_modifyitems(items) -> None:
  """Whole notebooks first, so that at the end no worker waits for another's longest test."""
  items.sort(key=lambda item: item.get_closest_marker('notebook') is None)
