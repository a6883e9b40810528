"""A detector for other runtimes."""
