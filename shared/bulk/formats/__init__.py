"""Input formats of bulk embedding: each module turns bytes into rows, a little at a time."""
