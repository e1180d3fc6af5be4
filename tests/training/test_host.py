"""Freed memory stays with the process: using it a second time touches no fresh page."""

import subprocess
import sys

import pytest

from perceiver_lib.training.host import keep_freed_memory

PAGE_FAULTS = """
import resource, sys
import numpy as np
from perceiver_lib.host_memory import keep_freed_memory
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
