"""What a model that predicts the next frame must beat: nothing changes, perhaps blurred, or all goes on as it did."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from perceiver_lib.data.base import Source
from perceiver_lib.data.loading import stack
from perceiver_lib.scores.signals import psnr


class FramePSNR(NamedTuple):
  """PSNR in decibels of the pooled squared error over all predicted frames, those inside shots, and those at cuts.

  A part without a frame has nan.
  """

  all: float
  within_shots: float
  at_cuts: float


FIRST_PREDICTED = 2
"""Of each clip; linear extrapolation needs two frames, and a fair comparison the same frames for all."""


def video_baselines(clips: Source) -> dict[str, FramePSNR]:
  """Copying the last frame, and linear extrapolation 2 x(t-1) - x(t-2) clipped to bytes, on every clip of a source.

  A cut just before frame t - 1 misleads the extrapolation of a frame t that counts as within its shot.

  Raises:
    ValueError: for clips of less than three frames.
  """
  errors: dict[str, list[np.ndarray]] = {'copy last frame': [], 'linear extrapolation': []}
  cuts = []
  for index in range(len(clips)):
    clip = clips[index]
    frames = clip['frames'].astype(np.int16)
    if len(frames) <= FIRST_PREDICTED:
      raise ValueError(f'The baselines need clips of {FIRST_PREDICTED + 1} frames or more; got {len(frames)}.')
    last, before = frames[1:-1], frames[:-2]
    predictions = (last, np.clip(2 * last - before, 0, 255))
    for name, predicted in zip(errors, predictions, strict=True):
      errors[name].append(squared_errors(predicted.astype(np.uint8), clip['frames'][FIRST_PREDICTED:]))
    cuts.append(clip['cuts'][FIRST_PREDICTED:])
  return {name: frame_psnr(np.concatenate(found), np.concatenate(cuts)) for name, found in errors.items()}


def blurred_copy(clips: Source, strength: float) -> FramePSNR:
  """Of copying the last frame with so much of it, from 0 to 1, blurred by 1 2 1 both ways: what caution alone gains."""
  last = stack(clips)['frames'][:, FIRST_PREDICTED - 1 : -1].astype(np.float32)
  padded = np.pad(last, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
  blurred = (rows[:, :, :, :-2] + 2 * rows[:, :, :, 1:-1] + rows[:, :, :, 2:]) / 4
  return prediction_psnr(clips, np.rint(last + strength * (blurred - last)).astype(np.uint8))


def prediction_psnr(clips: Source, predicted: UInt8[np.ndarray, 'n u y x c']) -> FramePSNR:
  """Of predictions of each clip's last u frames, where none before `FIRST_PREDICTED` counts."""
  examples = stack(clips)
  truth, cuts = examples['frames'][:, FIRST_PREDICTED:], examples['cuts'][:, FIRST_PREDICTED:]
  errors = [squared_errors(*pair) for pair in zip(predicted[:, -truth.shape[1] :], truth, strict=True)]
  return frame_psnr(np.concatenate(errors), np.concatenate(cuts))


def squared_errors(
  predicted: UInt8[np.ndarray, 't y x c'], truth: UInt8[np.ndarray, 't y x c']
) -> Float32[np.ndarray, 't']:
  """Mean squared error of each frame, in squared byte values."""
  difference = predicted.astype(np.float32) - truth.astype(np.float32)
  return np.square(difference).mean((1, 2, 3))


def frame_psnr(errors: Float32[np.ndarray, 't'], cuts: np.ndarray) -> FramePSNR:
  """Pools the mean squared errors of frames, and those of frames with and without a cut before them apart."""

  def pooled(chosen: np.ndarray) -> float:
    return psnr(float(errors[chosen].mean(dtype=np.float64))) if chosen.any() else float('nan')

  return FramePSNR(pooled(np.ones(len(errors), bool)), pooled(~cuts), pooled(cuts))
