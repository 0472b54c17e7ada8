"""`mt serve`: the HTTP server of a model, and its client."""
