"""Data sets with provenance, and the batches made of them. Nothing here knows a model."""

from perceiver_lib.data.base import DataSet, Provenance, Source
from perceiver_lib.data.images import from_arrays, from_folder, load_images
from perceiver_lib.data.loading import (
  ArraySource,
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
  'evaluation_batches',
  'from_arrays',
  'from_folder',
  'load_images',
  'mixed_training_batches',
  'stack',
  'training_batches',
]
