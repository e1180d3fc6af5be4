"""Everything that knows a run: profiles, the run context, bands, the notebook runner and the report page.

The names below load on first use: a process that measures another package would carry JAX's memory.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
  'Run': 'run',
  'RunIncomplete': 'run',
  'check_profile': 'profiles',
  'start_run': 'run',
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)
