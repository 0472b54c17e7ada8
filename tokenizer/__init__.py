"""Tokenizers: text to token ids and back, vocabulary files, training."""
