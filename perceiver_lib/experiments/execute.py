"""The process that runs one notebook through papermill: `python -m perceiver_lib.experiments.execute FOLDER`.

It reads `request.json` in the folder and leaves `executed.ipynb` and `outcome.json` there.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.environment import without_grammars
from perceiver_lib.experiments.files import write_json
from perceiver_lib.experiments.processes import describe_exit
from perceiver_lib.files import read_json


def main(folder: Path) -> None:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds through nbclient, which then ends the kernel
  threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
  logging.basicConfig(stream=sys.stdout, level=logging.INFO, format='%(message)s')
  request = read_json(folder / 'request.json')
  write_json(folder / 'outcome.json', _execute(request, folder / 'executed.ipynb'))


def _execute(request: dict[str, Any], output: Path) -> dict[str, str]:
  without_grammars()
  import papermill
  from jupyter_client.provisioning import local_provisioner
  from nbclient.exceptions import DeadKernelError

  kernels, launch = [], local_provisioner.launch_kernel

  def remembered(*arguments: Any, **settings: Any) -> Any:
    kernels.append(launch(*arguments, **settings))
    return kernels[-1]

  local_provisioner.launch_kernel = remembered  # nothing else keeps the exit status of a kernel that died
  try:
    executed = papermill.execute_notebook(
      request['source'],
      output,
      parameters=request['parameters'],
      kernel_name='python3',
      cwd=request['cwd'],
      progress_bar=False,
      log_output=True,
      autosave_cell_every=30,
    )
  except papermill.PapermillExecutionError as error:
    return {
      'status': 'failed',
      'message': f'cell In [{error.exec_count}] raised {error.ename}: {_first_line(error.evalue)}',
    }
  except DeadKernelError:
    return {'status': 'kernel died', 'message': f'the kernel {describe_exit(kernels[-1].returncode)}'}
  unfinished = [number for number, cell in enumerate(executed.cells) if _unfinished(cell)]
  if unfinished:
    message = (
      f'the notebook stopped early: {len(unfinished)} code cells did not complete, the first is cell {unfinished[0]}'
    )
    return {'status': 'failed', 'message': message}
  return {'status': 'complete', 'message': ''}


def _unfinished(cell: Any) -> bool:
  """papermill counts `sys.exit(0)` as success: the cells after it stay pending, the cell itself carries the error."""
  if cell.cell_type != 'code' or not cell.source.strip():
    return False
  stopped = any(output.output_type == 'error' for output in cell.outputs)
  return stopped or cell.metadata.get('papermill', {}).get('status') != 'completed'


def _first_line(text: str) -> str:
  lines = [line.strip() for line in str(text).strip().splitlines() if line.strip()]
  return ' '.join(lines[:6]) if lines else '(no message)'


def _end_with_parent(parent: int) -> None:
  """Ends this process when the runner is gone, so that a resumed run does not meet its predecessor at work."""
  while os.getppid() == parent:
    time.sleep(1)
  os.kill(os.getpid(), signal.SIGTERM)


if __name__ == '__main__':
  main(Path(sys.argv[1]))
