"""Piano rolls draw every note of every voice at its time and pitch, in colours that tell voices apart."""

import matplotlib

matplotlib.use('Agg')

import numpy as np
import pytest
from matplotlib.colors import to_hex

from perceiver_lib.plots import theme
from perceiver_lib.plots.music import VOICE_COLOURS, piano_roll

VOICES = [np.array([[0, 2, 72], [4, 4, 74]]), np.array([[0, 8, 67]]), np.array([[2, 2, 60]]), np.zeros((0, 3), int)]


def test_every_note_is_a_bar():
  figure = piano_roll({'Bach': VOICES, 'model': VOICES}, title='Roll', given_steps=4, bar_lines=[0, 6])
  assert len(figure.axes) == 2
  bars = [bar for container in figure.axes[0].containers for bar in container]
  drawn = sorted((bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in bars)
  np.testing.assert_allclose(drawn, sorted((n[0] / 2, n[1] / 2, n[2]) for voice in VOICES for n in voice.tolist()))
  assert to_hex(bars[0].get_facecolor()).upper() == VOICE_COLOURS[0]
  assert len(set(VOICE_COLOURS)) == 4 and set(VOICE_COLOURS) <= set(theme.PALETTE)
  assert 'Bach: 4 notes, model: 4 notes' in figure.alt_text
  figure.canvas.draw()


def test_given_voices_are_hollow():
  figure = piano_roll({'harmony': VOICES}, title='Roll', given_voices=1)
  soprano, alto = figure.axes[0].containers[:2]
  assert to_hex(soprano[0].get_facecolor()) == '#ffffff' and to_hex(alto[0].get_facecolor()) != '#ffffff'
  assert figure.legends[0].get_texts()[0].get_text() == 'soprano (given)'


def test_a_roll_without_notes_is_refused():
  with pytest.raises(ValueError, match='at least one note'):
    piano_roll({'empty': [np.zeros((0, 3), int)] * 4}, title='Roll')
