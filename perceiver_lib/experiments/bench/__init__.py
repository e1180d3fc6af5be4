"""What a user would pick instead, timed in turn with this library: `python -m perceiver_lib bench`."""
