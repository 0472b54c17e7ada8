"""documents -> fewer, cleaner documents."""
