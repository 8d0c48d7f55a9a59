"""``python -m bgpool``: the command line where no script is on the path."""

from __future__ import annotations

from bgpool.cli import main

if __name__ == "__main__":
    main()
