"""What optical flow must beat: no motion, one motion for all pixels, and classical methods of scikit-image."""

from __future__ import annotations

import numpy as np
from einops import reduce
from jaxtyping import Bool, Float, Num


def flow_baselines(
  frames: Num[np.ndarray, 'n 2 h w c'],
  truth: Float[np.ndarray, 'n h w 2'],
  valid: Bool[np.ndarray, 'n h w'] | None = None,
) -> dict[str, Float[np.ndarray, 'n h w 2']]:
  """Flows in pixels of what needs no training, by name.

  'best constant per pair' has seen the answers: nothing that gives one motion for all pixels of a pair can be better.

  Args:
    frames: in 0..255.
    valid: pixels that have truth; None = all.
  """
  valid = np.ones(truth.shape[:-1], bool) if valid is None else valid
  constants = {
    'no motion': np.zeros((len(truth), 2), np.float32),
    'best constant per pair': np.stack([best_constant(*known) for known in zip(truth, valid, strict=True)]),
    'phase correlation': np.stack([phase_correlation(pair) for pair in frames]),
  }
  flows = {name: np.broadcast_to(shift[:, None, None], truth.shape) for name, shift in constants.items()}
  classical = {'TV-L1': tv_l1, 'iterative Lucas-Kanade': lucas_kanade}
  return flows | {name: np.stack([method(pair) for pair in frames]) for name, method in classical.items()}


def best_constant(truth: Num[np.ndarray, '*shape 2'], valid: Bool[np.ndarray, '*shape'] | None = None) -> np.ndarray:
  """The one motion `[2]` with the least mean end-point error: the geometric median, by Weiszfeld's iteration.

  On test data this baseline has seen the answers; a model that beats it knows more than the average motion.
  """
  vectors = np.asarray(truth, np.float64)
  vectors = vectors.reshape(-1, 2) if valid is None else vectors[np.asarray(valid)]
  centre = np.median(vectors, axis=0)
  for _ in range(200):
    weight = 1 / np.maximum(np.linalg.norm(vectors - centre, axis=-1, keepdims=True), 1e-6)
    previous, centre = centre, (weight * vectors).sum(0) / weight.sum()
    if np.abs(centre - previous).max() < 1e-6:
      break
  return centre.astype(np.float32)


def phase_correlation(frames: Num[np.ndarray, '2 h w c']) -> Float[np.ndarray, '2']:
  """The one shift at which the spectra of both frames agree best (Guizar-Sicairos et al., 2008), by scikit-image."""
  from skimage.registration import phase_cross_correlation

  back, _, _ = phase_cross_correlation(*_grey(frames), upsample_factor=10)
  return -back[::-1].astype(np.float32)


def tv_l1(frames: Num[np.ndarray, '2 h w c']) -> Float[np.ndarray, 'h w 2']:
  """Total variation with an L1 data term (Zach et al., DAGM 2007; Sanchez Perez et al., IPOL 2013), by scikit-image."""
  from skimage.registration import optical_flow_tvl1

  return _classical(optical_flow_tvl1, frames)


def lucas_kanade(frames: Num[np.ndarray, '2 h w c']) -> Float[np.ndarray, 'h w 2']:
  """Iterative Lucas-Kanade on a pyramid (Le Besnerais and Champagnat, ICIP 2005), by scikit-image."""
  from skimage.registration import optical_flow_ilk

  return _classical(optical_flow_ilk, frames)


def _classical(method, frames: Num[np.ndarray, '2 h w c']) -> Float[np.ndarray, 'h w 2']:
  down, right = method(*_grey(frames))
  return np.stack([right, down], -1).astype(np.float32)


def _grey(frames: Num[np.ndarray, '2 h w c']) -> Float[np.ndarray, '2 h w']:
  return reduce(np.asarray(frames, np.float32) / 255, 't h w c -> t h w', 'mean')
