"""Progress of a long computation: a live bar for somebody who watches, plain lines in a log, nothing under pytest."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Mapping

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_BARS = 0.5


def in_notebook() -> bool:
  """Whether a Jupyter kernel is running this code."""
  ipython = sys.modules.get('IPython')
  shell = ipython.get_ipython() if ipython else None
  return shell is not None and hasattr(shell, 'kernel')


def resolve_mode(mode: str = 'auto') -> str:
  """'auto' becomes the environment variable PERCEIVER_PROGRESS, or what fits the place the code runs in.

  A kernel of Jupyter Server has JPY_SESSION_NAME and VS Code's has VSCODE_PID; a kernel started by papermill or
  nbclient has neither, and its output ends in a log, where every redrawing of a bar would be one more line.

  Raises:
    ValueError: if the mode is unknown.
  """
  if mode == 'auto':
    mode = os.environ.get('PERCEIVER_PROGRESS', 'auto')
  if mode not in ('auto', 'bar', 'lines', 'silent'):
    raise ValueError(f"progress must be 'auto', 'bar', 'lines' or 'silent'; got {mode!r}.")
  if mode != 'auto':
    return mode
  if 'PYTEST_CURRENT_TEST' in os.environ:
    return 'silent'
  if in_notebook():
    return 'bar' if os.environ.keys() & {'JPY_SESSION_NAME', 'VSCODE_PID'} else 'lines'
  return 'bar' if sys.stderr.isatty() else 'lines'


def format_duration(seconds: float) -> str:
  """'48 s', '3 min 05 s' or '2 h 07 min'."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'


class Progress:
  """Tells how far a computation of `total` steps is, and when it will end.

  The first step counted (`start`) is where this process began, so that the time left stays right after a resume.
  """

  def __init__(self, total: int, *, start: int = 0, mode: str = 'auto'):
    self.total, self.start, self.mode = total, start, resolve_mode(mode)
    self.interval = SECONDS_BETWEEN_BARS if self.mode == 'bar' else SECONDS_BETWEEN_LINES
    self._handle = None
    self.restart_clock()

  def restart_clock(self) -> None:
    """Counts time from now on: what came before, such as compiling, would spoil the rate and the time left."""
    self._begin = self._last = time.perf_counter()

  def due(self) -> bool:
    return self.mode != 'silent' and time.perf_counter() - self._last >= self.interval

  def say(self, sentence: str) -> None:
    """Prints a sentence of its own, such as why training starts from scratch."""
    if self.mode != 'silent':
      print(sentence, flush=True)

  def report(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the state after `step` steps. Prints a line each time, or redraws the bar."""
    if self.mode == 'silent':
      return
    self._last = time.perf_counter()
    done, elapsed = step - self.start, self._last - self._begin
    parts = [f'step {step:,}/{self.total:,}'] + [f'{name} {value:.4g}' for name, value in metrics.items()]
    if done:
      parts.append(f'{done / elapsed:.3g} steps/s')
      left = (self.total - step) * elapsed / done
      parts.append(f'{format_duration(left)} left' if step < self.total else f'took {format_duration(elapsed)}')
    line = '  '.join(parts)
    if self.mode == 'lines':
      print(line, flush=True)
    elif in_notebook():
      self._draw_in_notebook(step, line)
    else:
      filled = 24 * step // max(self.total, 1)
      end = '\n' if step >= self.total else ''
      print(f'\r\033[K[{"#" * filled}{"." * (24 - filled)}] {line}', end=end, file=sys.stderr, flush=True)

  def _draw_in_notebook(self, step: int, line: str) -> None:
    from IPython.display import display

    bundle = {
      'text/html': f'<progress value="{step}" max="{self.total}"></progress> <code>{html.escape(line)}</code>',
      'text/plain': line,
    }
    if self._handle is None:
      self._handle = display(bundle, raw=True, display_id=True)
    else:
      self._handle.update(bundle, raw=True)
