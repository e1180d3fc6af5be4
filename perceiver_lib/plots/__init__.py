"""Figures, one file a kind of picture; colours, sizes and alternative texts are said once, in `theme`."""
