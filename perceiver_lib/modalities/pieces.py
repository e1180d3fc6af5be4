"""Text as pieces of words: the SentencePiece tokenizer of krasserm's `perceiver-ar-clm-base`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from perceiver_lib.files import DamagedFile


class PieceTokenizer:
  """Text to ids of a SentencePiece model and back; the released model's is `spiece.model` of `xlnet-base-cased`.

  Raises:
    ModuleNotFoundError: with the pip command, if sentencepiece is missing.
    DamagedFile: if the file cannot be read as a model.
  """

  def __init__(self, path: str | os.PathLike):
    try:
      import sentencepiece
    except ImportError:
      raise ModuleNotFoundError(
        'Text is cut into pieces by sentencepiece: pip install sentencepiece', name='sentencepiece'
      ) from None
    try:
      self._pieces = sentencepiece.SentencePieceProcessor(model_file=os.fspath(path))
    except (OSError, RuntimeError) as error:
      raise DamagedFile(f'{path} is no SentencePiece model: {error}') from None
    self.vocabulary_size = self._pieces.get_piece_size()

  def encode(self, text: str) -> Int32[np.ndarray, 'm']:
    """The ids of a text, without special tokens."""
    return np.array(self._pieces.encode(text), np.int32)

  def decode(self, ids: Int[np.ndarray, 'm'] | Sequence[int]) -> str:
    """Raises a ValueError for ids outside the vocabulary."""
    ids = np.asarray(ids, np.int64).reshape(-1)
    if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary_size:
      raise ValueError(f'Ids must be in [0, {self.vocabulary_size}); got {ids.min()} to {ids.max()}.')
    return self._pieces.decode(ids.tolist())
