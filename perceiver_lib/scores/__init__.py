"""What is measured on arrays: error rates of sequences, flow errors, decibels, and whether gradients keep the rule."""
