"""The Perceiver family in JAX: Perceiver, Perceiver IO, Perceiver AR and the unified model, by one attention rule.

The names below load on first use, so that importing the package costs nothing:

    from perceiver_lib import Perceiver, PerceiverConfig, Tokens, fit

Everything else is one module deeper: `perceiver_lib.attention`, `.blocks`, `.positions`, `.models`, `.modalities`,
`.data`, `.pretrained`, `.plots`, `.experiments`.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
  'Tokens': 'tokens',
  'may_attend': 'tokens',
  'SOURCE_TIME': 'tokens',
  'attend': 'attention.attend',
  'capture_attention': 'attention.capture',
  'Perceiver': 'models.perceiver',
  'PerceiverConfig': 'models.perceiver',
  'PerceiverAR': 'models.perceiver_ar',
  'PerceiverARConfig': 'models.perceiver_ar',
  'PerceiverIO': 'models.perceiver_io',
  'PerceiverIOConfig': 'models.perceiver_io',
  'UnifiedPerceiver': 'models.unified',
  'UnifiedPerceiverConfig': 'models.unified',
  'LayerConfig': 'blocks',
  'fit': 'training.fit',
  'cross_entropy': 'training.losses',
  'load_pretrained': 'pretrained',
  'save_pretrained': 'pretrained',
  'start_run': 'experiments',
}

__all__ = sorted(_PUBLIC)
__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
