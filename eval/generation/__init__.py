"""Generation of text: sampling, continuous batching, beam search."""
