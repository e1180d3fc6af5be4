from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perceiver_lib.training.compilation import enable_compilation_cache


def test_compiled_programs_survive_the_process(tmp_path):
  program = (
    'import sys, jax; from perceiver_lib.training.compilation import enable_compilation_cache; jax.jit(lambda x: x + 1)(0);'
    'enable_compilation_cache(sys.argv[1]); jax.config.update("jax_persistent_cache_min_compile_time_secs", 0);'
    'jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()'
  )
  environment = os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)}
  subprocess.run([sys.executable, '-c', program, str(tmp_path / 'cache')], check=True, env=environment, timeout=120)
  assert list((tmp_path / 'cache').iterdir())


def test_unwritable_compilation_cache_is_a_warning(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.warns(UserWarning, match='cannot be kept in .*file/cache'):
    assert enable_compilation_cache(tmp_path / 'file' / 'cache') is None
