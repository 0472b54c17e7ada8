"""Parallelism, applied from outside the model."""
