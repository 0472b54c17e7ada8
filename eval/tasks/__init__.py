"""Evaluation tasks, one file for each."""
