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
