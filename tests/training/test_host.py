"""Freed memory stays with the process, and compiled programs outlive it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perceiver_lib.training.host import enable_compilation_cache, keep_freed_memory

PAGE_FAULTS = """
import resource, sys
import numpy as np
from perceiver_lib.training.host import keep_freed_memory
if sys.argv[1] == 'keep':
  keep_freed_memory()
for repeat in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = np.ones(2**24, np.float32)  # 64 MiB: above the largest threshold that glibc finds by itself
  del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults_of_the_third_use(mode: str) -> int:
  done = subprocess.run([sys.executable, '-c', PAGE_FAULTS, mode], capture_output=True, text=True, check=True)
  return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason='only glibc can be asked to keep freed memory')
def test_a_block_that_was_freed_is_used_again():
  pages = 64 // 2  # of 2 MiB, the largest that the kernel may hand out at one fault
  assert page_faults_of_the_third_use('keep') < pages // 2
  assert page_faults_of_the_third_use('default') >= pages


def test_compiled_programs_survive_the_process_and_a_damaged_one_is_replaced(tmp_path):
  program = """
import sys, jax
from pathlib import Path
from perceiver_lib.training.host import enable_compilation_cache
jax.jit(lambda x: x + 1)(0)
cache = enable_compilation_cache(sys.argv[1])
compiled = lambda: jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
compiled()
entries = {path: path.read_bytes() for path in cache.glob('*-cache')}
for path in entries:
  path.write_bytes(entries[path][:7])
jax.clear_caches()
compiled()
assert entries and all(len(path.read_bytes()) > 7 for path in entries)
"""
  environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
  command = [sys.executable, '-c', program, str(tmp_path / 'cache')]
  done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'Error reading persistent compilation cache entry' in done.stderr


def test_unwritable_compilation_cache_is_a_warning(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.warns(UserWarning, match='cannot be kept in .*file/cache'):
    assert enable_compilation_cache(tmp_path / 'file' / 'cache') is None
