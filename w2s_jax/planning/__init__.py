"""From a config to the phases of a run: resolve the inputs, then plan. Imports no JAX."""
