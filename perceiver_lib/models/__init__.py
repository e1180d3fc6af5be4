"""One file a model: a frozen config with presets, and `Model(config, *, rngs)` that encodes, processes and decodes.

Arguments that every call shares, described here once:

  chunk_size: input tokens that are read at a time, with equal outputs and gradients and memory that does not grow with
    the input. None = chosen from the shapes: all at once where that is small. Only what is read all at once
    has forward-mode derivatives (`jax.jvp`).
  remat: whether the backward pass makes each latent layer again instead of keeping what it computed.
  rngs: an `nnx.Rngs` with a `dropout` stream, for training. None = evaluation, in which nothing is dropped.
"""
