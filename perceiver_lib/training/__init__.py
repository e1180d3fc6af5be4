"""Training a model: `fit` is the door.

fit          checks, resume, loop            step         the loss as a pure function, and one update
checkpoints  whole or absent, never mixed    weights      safetensors, by parameter paths
optimizers   AdamW, Muon                     losses       cross-entropy that bears NaN in padding
metrics      exact means, predictions        sequences    next tokens and crops
strided      long documents, every token scored once
mirrored_copy  crops and accuracy of the copy task
latent_search  how many latents a task needs
sharding     meshes                          host         freed memory, compiled programs on disk
progress     the bar
"""
