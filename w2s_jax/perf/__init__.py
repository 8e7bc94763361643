"""Benchmarks (`w2s bench`) and compilation for absent TPUs (`w2s compile`)."""
