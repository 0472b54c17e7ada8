"""documents -> token ids on disk -> samples."""
