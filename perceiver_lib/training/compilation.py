"""Compiled programs that outlive the process."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import jax


def enable_compilation_cache(directory: str | os.PathLike | None = None) -> Path | None:
  """Keeps compiled programs on disk, so that the next process does not compile them again.

  Args:
    directory: by default the environment variable JAX_COMPILATION_CACHE_DIR, or else perceiver_lib/jax in the user's
      cache folder. Treat its content as code: whoever can write there can run programs as you.

  Returns:
    The folder, or None after a warning where it cannot be written; everything works without it, more slowly.
  """
  default = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'perceiver_lib' / 'jax'
  directory = Path(directory or os.environ.get('JAX_COMPILATION_CACHE_DIR') or default).expanduser().absolute()
  try:
    directory.mkdir(parents=True, exist_ok=True)
    writable = os.access(directory, os.W_OK)
  except OSError:
    writable = False
  if not writable:
    warnings.warn(
      f'Compiled programs cannot be kept in {directory}, which is not writable; every run compiles anew. Set '
      'JAX_COMPILATION_CACHE_DIR to a folder of yours.',
      stacklevel=2,
    )
    return None
  jax.config.update('jax_compilation_cache_dir', str(directory))
  # Also the small programs of single operations: there are hundreds in a notebook, and to load one takes 2 ms, not 30.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  # JAX decides once a process whether it has a cache, at the first compilation, which may have been before this call.
  from jax.experimental.compilation_cache import compilation_cache

  compilation_cache.reset_cache()
  return directory
