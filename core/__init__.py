"""Configuration, manifests, work over shards, progress, compiled loops: used by all other folders."""
