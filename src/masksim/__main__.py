"""``python -m masksim`` is the command ``masksim``."""

from __future__ import annotations

from masksim.cli.main import main

if __name__ == "__main__":
    main()
