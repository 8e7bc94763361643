"""Sweeps: many runs planned as one graph of phases, each of which is computed once."""
