"""indexed tokens -> chunks -> embeddings -> index -> neighbours."""
