"""Evaluation of checkpoints: language-model scores, tasks, generation, the HTTP server."""
