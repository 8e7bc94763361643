"""Metrics of predictions, and how sure one can be of them."""
