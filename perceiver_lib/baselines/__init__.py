"""What a model must beat, one file a kind: images, text, music, clips, pronunciation, flow. They know no model."""
