"""`w2s compile`: what a run takes of a TPU slice, by its compiler, without a TPU."""
