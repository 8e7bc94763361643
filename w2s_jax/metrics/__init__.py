"""Metrics of predictions, confidence intervals and tests."""
