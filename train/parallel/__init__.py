"""Parallelism: process groups, collectives, and how they are applied to a built model."""
