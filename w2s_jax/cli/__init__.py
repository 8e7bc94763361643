"""The command line, `w2s`. Imports no JAX."""
