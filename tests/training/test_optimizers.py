"""Which parameter is turned by which rule."""

from __future__ import annotations

from flax import nnx

from perceiver_lib.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceiver_lib.training.optimizers import layer_kernels


def test_muon_takes_the_kernels_of_layers_and_adam_the_rest():
  model = PerceiverAR(PerceiverARConfig.tiny(), rngs=nnx.Rngs(0))
  chosen = layer_kernels(nnx.state(model, nnx.Param))
  for path, chosen_here in nnx.to_flat_state(chosen):
    name = '.'.join(map(str, path))
    assert bool(chosen_here.get_value()) == (name.endswith('kernel') and not name.startswith('head')), name
