"""What notebook 06 measures on a byte model means what it says."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from perceiver_lib.lessons import perceiver_ar_text as lesson
from perceiver_lib.modalities.text import VOCAB_SIZE, ByteTokenizer
from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.parameters import filled
from perceiver_lib.tokens import Tokens
from tests.support import assert_close


def test_bits_of_each_byte_are_those_of_the_softmax():
  model = filled(PerceiverAR(PerceiverARConfig.tiny(VOCAB_SIZE), rngs=nnx.Rngs(0)), scale=0.1)
  text = np.frombuffer(b'the sound and the fury', np.uint8)
  bits = lesson.bits_of_each_byte(model, text, 13)
  ids = ByteTokenizer.ids(text)
  logits = np.asarray(lesson.outputs(model, Tokens(values=jnp.asarray(ids[:-1])[None]), 13).values[0], np.float64)
  expected = np.log2(np.exp(logits).sum(-1)) - logits[np.arange(13), ids[-13:]] / np.log(2)
  assert_close(bits, expected)
