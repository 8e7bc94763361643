"""A whole run: its working directory, its missing phases, its result, and garbage collection."""
