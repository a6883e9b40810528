"""The original's own recipe and its checkpoints (torch)."""
