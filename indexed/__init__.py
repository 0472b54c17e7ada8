"""Token files: documents to .bin/.idx pairs, and pairs to the samples that training reads."""
