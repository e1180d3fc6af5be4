"""What a modality is, one file each: its tokens, queries, output head, and what comes before and after the model."""
