"""Generation: `stream` by token, `timesteps` for frames and anything else, `beam_search`, `replay` of known tokens."""
