"""Extraction of documents from Wikipedia dumps, WARC files, Python packages, and filters of URLs."""
