"""The command line: ``bgpool``. Its own dependencies are an extra, so that a library user pays nothing for it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from bgpool.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"bgpool's command line needs {error.name}: pip install 'bgpool[cli]', or bgpool[demo] for the demo")
    app()
