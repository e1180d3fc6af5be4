"""Pieces of words, where the optional package is; one sentence where it is not."""

from __future__ import annotations

import sys

import pytest

from perceiver_lib.files import DamagedFile
from perceiver_lib.modalities.pieces import piece_tokenizer


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sentencepiece', None)
  with pytest.raises(ModuleNotFoundError, match='pip install sentencepiece'):
    piece_tokenizer('spiece.model')


def test_pieces_come_back_as_text(tmp_path):
  sentencepiece = pytest.importorskip('sentencepiece')
  text = 'A piece of a word is a piece. A word of pieces is a word.'
  (tmp_path / 'text').write_text('\n'.join([text] * 20))
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / 'text'), model_prefix=str(tmp_path / 'm'), vocab_size=18, minloglevel=2
  )
  tokenizer = piece_tokenizer(tmp_path / 'm.model')
  ids = tokenizer.encode(text)
  assert tokenizer.get_piece_size() == 18 and max(ids) < 18 and len(ids) < len(text)
  assert tokenizer.decode(ids) == text
  with pytest.raises(DamagedFile, match='is no SentencePiece model'):
    piece_tokenizer(tmp_path / 'text')
