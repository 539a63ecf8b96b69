"""Runtime sessions over one model each: token ids in, arrays out."""
