"""One attention in several forms, equal in outputs and gradients; this is the map of the folder, in reading order.

attend        `reference_attend`, four plain lines that say what all else computes, and the choice of a form
projections   from raw tokens to queries, keys and values
softmax       `PartialSoftmax`: a softmax over the keys that were seen so far, and all that merges it
streamed      inputs of any length, a chunk of tokens at a time
timesteps     what the same question reads at every timestep, in one pass (the unified model's encoder)
grouped       that pass: the same queries over groups of tokens
block_causal  self-attention over latents in time, without the forbidden half
caching       keys and values of tokens that were read before
capture       attention maps by name; while they are recorded, blocks are read as any other latents
rollout       from an output through the layers to the inputs
products      how a product of two arrays is made
"""
