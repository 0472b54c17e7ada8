"""Models of all families, written for one device: layers, blocks, losses and their costs."""
