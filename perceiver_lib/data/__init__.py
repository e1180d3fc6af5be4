"""Data sets with provenance, and the batches made of them. Nothing here knows a model."""

from perceiver_lib.data.base import DataSet, Provenance, Source
from perceiver_lib.data.images import from_folder, full_range, halved, load_images
from perceiver_lib.data.loading import ArraySource, batches_from, evaluation_batches, stack, training_batches
from perceiver_lib.data.text_sources import load_corpus

__all__ = [
  'ArraySource',
  'DataSet',
  'Provenance',
  'Source',
  'batches_from',
  'evaluation_batches',
  'from_folder',
  'full_range',
  'halved',
  'load_corpus',
  'load_images',
  'stack',
  'training_batches',
]
