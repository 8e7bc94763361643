"""What every other package needs: errors, files, processes, signals, the hang watchdog. No JAX."""
