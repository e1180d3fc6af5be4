"""What goes wrong around a run, said in one sentence, and the exit code that tells scripts which kind it was."""

from __future__ import annotations

import errno

EXIT_OK = 0
EXIT_NOTEBOOK_FAILED = 1
EXIT_BAD_REQUEST = 2
EXIT_CANNOT_WRITE = 3
EXIT_TIME_LIMIT = 4
EXIT_KERNEL_DIED = 5
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

EXIT_CODES = {
  EXIT_OK: ('every notebook is complete: all cells, metrics in their bands, figures', 'open the report'),
  EXIT_NOTEBOOK_FAILED: (
    'a notebook failed, or several in different ways',
    'the report and `log.txt` name the cell or the metric; mend it, then `--resume`',
  ),
  EXIT_BAD_REQUEST: (
    "the request can't be carried out, or a record is damaged; nothing was started",
    'the sentence names what is wrong: an option, a file, a folder of another run',
  ),
  EXIT_CANNOT_WRITE: (
    "the run's folder can't be written: a full disk, no permission",
    'free space or choose another `--run-dir`, then `--resume`',
  ),
  EXIT_TIME_LIMIT: (
    'a notebook reached its time limit, or the run its budget',
    '`--resume` with a larger `--time-limit` or `--budget`; trainings go on from their checkpoints',
  ),
  EXIT_KERNEL_DIED: (
    'a kernel died, most often for too little memory',
    'fewer `--jobs`, a machine with more memory, or a smaller profile, then `--resume`',
  ),
  EXIT_INTERRUPTED: ('interrupted', 'the last line is the command that goes on'),
}
"""What each exit code of the command line means, and what to do then; README shows it as a table."""


class RequestError(ValueError):
  """A request that cannot be carried out. Its text is the one sentence that the user reads."""


def explain_os_error(error: OSError, option: str = '') -> str:
  """One sentence for a file-system error: which path, what happened, what to do.

  Args:
    option: of the command line, that names another folder; '' where there is none.
  """
  path = error.filename if error.filename is not None else 'the output folder'
  how = f' with {option}' if option else ''
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return f'The disk is full: writing {path} failed; free some space, or choose another folder{how}.'
  if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    return f'No permission to write {path}; choose a folder of your own{how}.'
  if error.errno == errno.ENOTDIR:
    return f'{path} is not a folder; choose another one{how}.'
  return f'{error.strerror or error} ({path}).'
