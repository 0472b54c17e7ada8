"""Deduplication: exact copies, near duplicates by MinHash, repeated lines."""
