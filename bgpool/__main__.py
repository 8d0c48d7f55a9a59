"""``python -m bgpool``: the command line, if the script is not on the path."""

from __future__ import annotations

from bgpool.cli import main

if __name__ == "__main__":
    main()
