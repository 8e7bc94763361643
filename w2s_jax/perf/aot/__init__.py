"""`w2s compile`: compile a run's programs for a TPU slice, without a TPU."""
