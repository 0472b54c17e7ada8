"""Training: the loop, and its batches, models, parallelism, checkpoints and plans."""
