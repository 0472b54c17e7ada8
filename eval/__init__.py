"""checkpoint + task -> scores; generation, server."""
