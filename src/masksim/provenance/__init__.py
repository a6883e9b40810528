"""What a file and its pixels say of their own origin; never part of a score."""
