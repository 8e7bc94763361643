"""The built-in kinds of phases, a file each. Importing them imports no JAX."""
