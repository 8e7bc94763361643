"""Errors, files, processes, signals and the watchdog, which all packages use. Imports no JAX."""
