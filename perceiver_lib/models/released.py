"""How a model gets released weights and gives its own away; `perceiver_lib.pretrained` does it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

Model = TypeVar('Model')


class Released:
  """What models of which weights are published have beside their layers."""

  @classmethod
  def from_pretrained(cls: type[Model], source: str | os.PathLike, **settings: Any) -> Model:
    """The model with the weights of a hub id, folder or file; see `perceiver_lib.load_pretrained` for the settings.

    Raises:
      ValueError: if the weights are those of another model.
    """
    from perceiver_lib import load_pretrained

    model = load_pretrained(source, **settings)
    if not isinstance(model, cls):
      raise ValueError(f'{source} holds a {type(model).__name__}, no {cls.__name__}.')
    return model

  def save_pretrained(self, folder: str | os.PathLike) -> Path:
    """Writes the weights under Hugging Face's names; see `perceiver_lib.save_pretrained`."""
    from perceiver_lib import save_pretrained

    return save_pretrained(self, folder)
