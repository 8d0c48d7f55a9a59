"""The command line: ``bgpool``. Its own dependencies are an extra, so that a library user pays nothing for it."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        if sys.argv[1:2] == ["status"]:
            # Before typer, which takes longer to import than status may take: it is asked again and again on the night.
            from bgpool.cli import status

            # As of any tool whose output is piped into head: there is nothing to tidy up.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            sys.exit(status.main(sys.argv[2:]))
        from bgpool.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"bgpool's command line needs {error.name}: pip install 'bgpool[cli]', or bgpool[demo] for the demo")
    app()
