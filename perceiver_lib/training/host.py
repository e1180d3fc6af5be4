"""What the host keeps: freed memory within a process, and compiled programs between processes.

XLA's CPU backend asks for its temporary buffers anew at every call. glibc serves large blocks with mmap and unmaps them
when they are freed, so every training step touches tens of megabytes of fresh pages, and the kernel zeroes each one at
its first touch. Measured on the optical-flow model of notebook 03 (one core, batch 16): 82 ms a gradient with the
defaults of glibc, 45 ms when freed memory stays with the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from pathlib import Path
from typing import Any

import jax

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_KEPT_BLOCK = 2**30
_NEVER_TRIM = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
  """Asks the C library to reuse freed blocks of up to 1 GiB; larger ones still go back to the system.

  What was once needed at the same time stays with the process until it ends; its peak does not grow by more than the
  holes between blocks. Environment variables of glibc that set these thresholds are overruled.

  Returns:
    Whether that was done: only glibc knows how, other systems and C libraries are left as they are.
  """
  try:
    library = ctypes.CDLL(None)
    library.gnu_get_libc_version  # noqa: B018 (musl has a mallopt too, which does nothing)
    return bool(
      library.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM) and library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK)
    )
  except (OSError, AttributeError, TypeError):
    return False


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
  _replace_damaged_entries()
  return directory


@functools.cache
def _replace_damaged_entries() -> None:
  """JAX warns of an entry that it cannot read, compiles, and then never writes over it: the file has to go first.

  What does that is no public part of JAX; where it has moved, damaged entries stay as they are.
  """
  try:
    from jax._src import compilation_cache

    read = compilation_cache.get_executable_and_time
  except (ImportError, AttributeError):
    return

  @functools.wraps(read)
  def read_or_remove(cache_key: str, *arguments: Any, **settings: Any) -> Any:
    try:
      return read(cache_key, *arguments, **settings)
    except OSError:  # of the disk, which says nothing about the entry
      raise
    except Exception:
      (Path(jax.config.jax_compilation_cache_dir) / f'{cache_key}-cache').unlink(missing_ok=True)
      raise

  compilation_cache.get_executable_and_time = read_or_remove
