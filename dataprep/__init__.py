"""Prepare training documents: extract, clean, deduplicate, decontaminate, hold out."""
