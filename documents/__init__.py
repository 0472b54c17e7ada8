"""Documents: reads them from files and other sources, and writes them."""
