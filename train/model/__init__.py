"""The model family: layers, blocks and the models made of them, written for one device."""
