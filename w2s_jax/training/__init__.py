"""Training: state, optimiser, the jit-compiled step, checkpoints and the loop."""
