"""Sweeps: many runs as one set of phases, each of which is computed once."""
