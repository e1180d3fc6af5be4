"""Data sets with provenance, and the batches made of them. Nothing here knows a model."""

from perceiver_lib.data.augment import random_affine
from perceiver_lib.data.base import DataSet, Provenance, Source
from perceiver_lib.data.images import from_arrays, from_folder, full_range, halved, load_images
from perceiver_lib.data.loading import (
  ArraySource,
  batches_from,
  evaluation_batches,
  mixed_training_batches,
  stack,
  training_batches,
)

__all__ = [
  'ArraySource',
  'DataSet',
  'Provenance',
  'Source',
  'batches_from',
  'evaluation_batches',
  'from_arrays',
  'from_folder',
  'full_range',
  'halved',
  'load_images',
  'mixed_training_batches',
  'random_affine',
  'stack',
  'training_batches',
]
