"""What a model must beat, one file a kind: images, text, music, video, pronunciation, flow. They know no model."""
