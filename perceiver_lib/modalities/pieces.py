"""Text as pieces of words: the SentencePiece tokenizer of krasserm's `perceiver-ar-clm-base`."""

from __future__ import annotations

import os
from typing import Any

from perceiver_lib.files import DamagedFile


def piece_tokenizer(path: str | os.PathLike) -> Any:
  """A `SentencePieceProcessor`, whose `encode` and `decode` go from text to ids and back.

  Args:
    path: of its model; the released one is `spiece.model` of `xlnet-base-cased`, with 32,000 pieces.

  Raises:
    ModuleNotFoundError: with the pip command, if sentencepiece is missing.
    DamagedFile: if the file cannot be read as a model.
  """
  try:
    from sentencepiece import SentencePieceProcessor
  except ImportError:
    words = 'Text is cut into pieces by sentencepiece: pip install sentencepiece'
    raise ModuleNotFoundError(words, name='sentencepiece') from None
  try:
    return SentencePieceProcessor(model_file=os.fspath(path))
  except (OSError, RuntimeError) as error:
    raise DamagedFile(f'{path} is no SentencePiece model: {error}') from None
