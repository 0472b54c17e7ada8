"""samples -> batches -> model -> checkpoint."""
