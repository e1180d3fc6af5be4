"""What notebook 06 measures on a byte model means what it says."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from perceiver_lib.data.text import Documents
from perceiver_lib.lessons import perceiver_ar_text as lesson
from perceiver_lib.modalities.text import VOCAB_SIZE, ByteTokenizer
from perceiver_lib.modalities.text_context import ContextAdapterConfig, with_previous
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from tests.support import assert_close


def tiny() -> PerceiverAR:
  adapter = ContextAdapterConfig(num_ids=3, num_id_channels=5, num_channels=16, position=None)
  config = dataclasses.replace(PerceiverARConfig.tiny(VOCAB_SIZE), input_adapter=adapter)
  return PerceiverAR(config, rngs=nnx.Rngs(0))


def test_bits_of_each_byte_are_those_of_the_softmax_and_of_the_visible_context():
  model = filled(tiny(), scale=0.1)
  row, other = (np.frombuffer(text, np.uint8) for text in (b'the sound and the fury', b'To be, or not the fury'))
  rows, settings = np.stack([row, other]), {'num_latents': 7, 'num_ids': 3}
  whole, cut = (lesson.bits_of_each_byte(model, rows, context=context, **settings) for context in (None, 8))
  ids = ByteTokenizer.ids(row)
  logits = model(with_previous(Tokens(values=jnp.asarray(ids[:-1])[None]), 3), num_latents=7).values[0]
  logits = np.asarray(logits, np.float64)
  assert_close(whole[0], np.log2(np.exp(logits).sum(-1)) - logits[np.arange(7), ids[-7:]] / np.log(2))
  np.testing.assert_array_equal(cut[0], cut[1])
  assert np.abs(whole[0] - whole[1]).min() > 0


def test_new_names_come_three_times_and_the_control_lacks_the_first_two(monkeypatch):
  text = b'x' * 60 + b' Prospero, known, Prospero! and Prosperos, Prospero ' + b'known known'
  [name] = lesson.new_names(Documents.of({'play': text}), b'known', 60)
  assert name.word == b'Prospero' and name.rows.shape == (3, 60)
  assert [row.tobytes().count(b'Prospero') for row in name.rows] == [1, 2, 4]
  assert lesson.new_names(Documents.of({'play': text}), b'a Prospero known', 60) == []
  asked = []

  def bits_of_each_byte(model, rows):
    asked.extend(row.tobytes() for row in rows)
    return np.ones((len(rows), 20))

  monkeypatch.setattr(lesson, 'bits_of_each_byte', bits_of_each_byte)
  found = lesson.bits_by_occurrence(tiny(), [name], seed=0)
  assert list(found.values()) == [8.0] * 4
  assert asked[3].endswith(b' Prospero') and len(asked[3]) == 60
  assert asked[3].count(b'Prospero') == 2 and b'Prosperos' in asked[3]  # another word stays
