"""Renders `perceiver_lib/data/assets/spoken_digits.npz.xz` with eSpeak NG. Run it in an environment of its own:

    pip install espeakng-loader numpy scipy && python tests/data/make_spoken_digits.py

eSpeak NG does not give the same samples twice, so the file is committed and made again only to change what it holds.
Its library is GPL-3; sounds that it makes are not covered by that.
"""

import ctypes
import io
import lzma
from pathlib import Path

import espeakng_loader
import numpy as np
from scipy.signal import resample_poly

FILE = Path(__file__).parents[2] / 'perceiver_lib' / 'data' / 'assets' / 'spoken_digits.npz.xz'
WORDS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
ACCENTS = ('en', 'en-us', 'en-gb-scotland')
NO_VOICE = {'whisper', 'whisperf', 'fast', 'croak', 'UniRobot', 'anikaRobot', 'kaukovalta', 'Demonic', 'serious'}
NO_VOICE |= {'announcer', 'Tweaky', *(f'robosoft{number}' for number in ['', 2, 3, 4, 5, 6, 7, 8])}
RATE, SAMPLES, LOUDNESS = 8_000, 4_096, 0.12
SYNCHRONOUS, WORDS_A_MINUTE, PITCH, PITCH_RANGE = 2, 1, 3, 4


class Speaker:
  """Words as int16 samples at the library's own rate."""

  def __init__(self):
    self.library = ctypes.CDLL(espeakng_loader.get_library_path())
    folder = espeakng_loader.get_data_path()
    self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, str(Path(folder).parent).encode(), 0)
    if self.rate < 0:
      raise RuntimeError(f'eSpeak NG does not start with the data in {folder}.')
    self.variants = sorted(set(path.name for path in Path(folder, 'voices', '!v').iterdir()) - NO_VOICE)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    self.parts, self.callback = [], kind(self._receive)
    self.library.espeak_SetSynthCallback(self.callback)

  def _receive(self, samples, count, events):
    if samples and count > 0:
      self.parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0

  def say(self, word, voice, **settings):
    self.parts.clear()
    if self.library.espeak_SetVoiceByName(voice.encode()):
      raise RuntimeError(f'eSpeak NG has no voice {voice!r}.')
    for number, value in settings.values():
      self.library.espeak_SetParameter(number, int(value), 0)
    text = word.encode()
    self.library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, 1, None, None)
    self.library.espeak_Synchronize()
    return np.concatenate(self.parts)


def cut(samples, threshold=0.02, margin=40):
  """Without the silence on both sides."""
  [loud] = np.nonzero(np.abs(samples) > threshold)
  return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def main():
  speaker = Speaker()
  sounds = np.zeros((len(speaker.variants), len(WORDS), SAMPLES), np.int8)
  for number, variant in enumerate(speaker.variants):
    random, voice = np.random.default_rng(number), f'{ACCENTS[number % len(ACCENTS)]}+{variant}'
    for digit, word in enumerate(WORDS):
      settings = {
        'speed': (WORDS_A_MINUTE, random.integers(150, 230)),
        'pitch': (PITCH, random.integers(30, 75)),
        'range': (PITCH_RANGE, random.integers(30, 60)),
      }
      spoken = cut(speaker.say(word, voice, **settings) / 32768)
      spoken = resample_poly(spoken, RATE // 50, speaker.rate // 50)[:SAMPLES]
      spoken *= LOUDNESS / np.sqrt(np.mean(spoken**2))
      sounds[number, digit, : len(spoken)] = np.rint(127 * np.clip(spoken, -1, 1))
  content = io.BytesIO()
  np.savez(content, sounds=sounds, voices=np.array(speaker.variants))
  FILE.write_bytes(lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME))
  print(sounds.shape, f'{FILE.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
