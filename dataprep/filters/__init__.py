"""Rules and edits of `mt data clean`, and filters by a classifier."""
