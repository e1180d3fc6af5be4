"""Every test runs with strict dtype and rank promotion, a figure backend without a screen, and a compilation cache."""

from __future__ import annotations

import os

import jax

import tests.typechecker  # noqa: F401 -- the import hook of jaxtyping looks it up as an attribute of `tests`
from perceiver_lib.training import enable_compilation_cache

os.environ.setdefault('MPLBACKEND', 'Agg')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
enable_compilation_cache()
