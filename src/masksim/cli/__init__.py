"""The command ``masksim``."""
