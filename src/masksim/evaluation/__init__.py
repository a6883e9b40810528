"""How good a detector is, and how often it raises a false alarm."""
