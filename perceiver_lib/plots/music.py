"""Piano rolls: time to the right, pitch upwards, a colour and a height of bar for each voice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perceiver_lib.plots import theme

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

VOICE_NAMES = ('soprano', 'alto', 'tenor', 'bass')
VOICE_COLOURS = (theme.VERMILLION, theme.ORANGE, theme.GREEN, theme.BLUE)
_GIVEN = '#F3F3F3'
_OCTAVE_NAMES = {12 * (octave + 1): f'C{octave}' for octave in range(10)}


def piano_roll(
  scores: Mapping[str, Sequence[np.ndarray]],
  *,
  title: str,
  given_steps: int = 0,
  given_voices: int = 0,
  bar_lines: Sequence[int] = (),
  steps_per_quarter: int = 2,
) -> Figure:
  """One panel a score, all with the same axes.

  Args:
    scores: {caption: notes of each voice}, a row a note: onset and length in time steps, MIDI pitch
      (`perceiver_lib.modalities.music.to_notes`).
    given_steps: time before which everything was given to the model; shaded.
    given_voices: the first so many voices were given; drawn hollow.
    bar_lines: time steps at which bars begin.

  Raises:
    ValueError: if no score has a note.
  """
  notes = [voice for voices in scores.values() for voice in voices if len(voice)]
  if not notes:
    raise ValueError('A piano roll needs at least one note; all voices of all scores are empty.')
  notes = np.concatenate(notes)
  end, low, high = (notes[:, 0] + notes[:, 1]).max(), notes[:, 2].min(), notes[:, 2].max()
  with theme.use_theme():
    figure = theme.new_figure(0.9 + 2.5 * len(scores), title=title)
    panels = figure.subplots(len(scores), sharex=True, squeeze=False)[:, 0]
    for panel, (caption, voices) in zip(panels, scores.items(), strict=True):
      _draw(panel, voices, given_voices, steps_per_quarter)
      panel.set(title=caption, ylim=(low - 2, high + 2), xlim=(0, end / steps_per_quarter), ylabel='pitch')
      ticks = [pitch for pitch in _OCTAVE_NAMES if low - 2 <= pitch <= high + 2]
      panel.set_yticks(ticks, [_OCTAVE_NAMES[pitch] for pitch in ticks])
      panel.vlines(np.asarray(bar_lines) / steps_per_quarter, low - 2, high + 2, color=theme.PALE, lw=1, zorder=0)
      if given_steps:
        panel.axvspan(0, given_steps / steps_per_quarter, color=_GIVEN, zorder=-1, label='given')
    panels[-1].set_xlabel('time (quarter notes)')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels))
  counts = ', '.join(f'{caption}: {sum(map(len, voices))} notes' for caption, voices in scores.items())
  return theme.describe(figure, f'{title}. Piano roll of {len(VOICE_NAMES)} voices; {counts}.')


def _draw(panel: Axes, voices: Sequence[np.ndarray], given_voices: int, steps_per_quarter: int) -> None:
  for number, (voice, name, colour) in enumerate(zip(voices, VOICE_NAMES, VOICE_COLOURS, strict=True)):
    given = number < given_voices
    # Voices that sing the same pitch stay visible, because an upper voice's bar is thinner and lies on top.
    height = 0.7 + 0.2 * number
    panel.barh(
      voice[:, 2],
      voice[:, 1] / steps_per_quarter,
      height,
      left=voice[:, 0] / steps_per_quarter,
      facecolor='white' if given else colour,
      edgecolor=colour if given else 'white',
      linewidth=1.2 if given else 0.4,
      zorder=5 - number,
      label=f'{name} (given)' if given else name,
    )
