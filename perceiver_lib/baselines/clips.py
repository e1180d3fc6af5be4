"""What a model of pictures and sounds must beat: means, the nearest clip, a linear code, a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

PENALTIES = (10.0, 100.0, 1_000.0, 10_000.0)


def class_means(
  targets: Float[np.ndarray, 'n *shape'], labels: Int[np.ndarray, 'n']
) -> Float[np.ndarray, 'classes *shape']:
  return np.stack([targets[labels == label].mean(0) for label in range(labels.max() + 1)])


def nearest(known: Float[np.ndarray, 'n k'], asked: Float[np.ndarray, 'asked k']) -> Int[np.ndarray, 'asked']:
  """For every asked row the number of the known one at the least Euclidean distance."""
  return (np.square(known).sum(1) - 2 * asked @ known.T).argmin(1)


def linear_codes(
  inputs: Float[np.ndarray, 'n k'],
  targets: Float[np.ndarray, 'n e'],
  asked: Float[np.ndarray, 'asked k'],
  counts: Sequence[int],
  *,
  penalty: float = 100.0,
) -> dict[int, Float[np.ndarray, 'asked e']]:
  """The best answers of which only so many numbers come through, by count: ridge regression of reduced rank.

  Where the inputs are the targets it is principal component analysis.
  """
  found, answers = _ridge(inputs, targets, [penalty])[0], {}
  said = found(inputs) - targets.mean(0)
  basis = np.linalg.eigh(said.T @ said)[1][:, ::-1]
  said = found(asked) - targets.mean(0)
  for count in counts:
    kept = basis[:, :count]
    answers[count] = said @ kept @ kept.T + targets.mean(0)
  return answers


def linear_accuracy(
  inputs: Float[np.ndarray, 'n k'],
  labels: Int[np.ndarray, 'n'],
  asked: Float[np.ndarray, 'asked k'],
  truth: Int[np.ndarray, 'asked'],
) -> float:
  """Of a ridge classifier, in [0, 1], with the penalty of `PENALTIES` that suits the truth best, in its favour."""
  rules = _ridge(inputs, np.eye(labels.max() + 1, dtype=np.float32)[labels], PENALTIES)
  return max(float((rule(asked).argmax(1) == truth).mean()) for rule in rules)


def _ridge(inputs, targets, penalties):
  """One function from inputs to targets a penalty."""
  centre, middle = inputs.mean(0), targets.mean(0)
  inputs, targets = inputs - centre, targets - middle
  wide = inputs.shape[0] < inputs.shape[1]
  products, answers = (inputs @ inputs.T, targets) if wide else (inputs.T @ inputs, inputs.T @ targets)
  rules = []
  for penalty in penalties:
    weights = np.linalg.solve(products + penalty * np.eye(len(products), dtype=products.dtype), answers)
    weights = inputs.T @ weights if wide else weights
    rules.append(lambda asked, weights=weights: (asked - centre) @ weights + middle)
  return rules
