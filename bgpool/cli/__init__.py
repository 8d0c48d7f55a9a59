"""The command line: ``bgpool``. Its own dependencies are an extra, so that a library user pays nothing for it."""

from __future__ import annotations

import sys

from bgpool.cli.pipes import end_with_the_reader, open_standard_streams

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    open_standard_streams()
    end_with_the_reader()
    try:
        _run()
    finally:
        # Here, where a reader that has left still has its exit status.
        print(end="", flush=True)


def _run() -> None:
    try:
        if sys.argv[1:2] == ["status"]:
            # Before typer, which takes longer to import than status may take: it is asked again and again on the night.
            from bgpool.cli import status

            sys.exit(status.main(sys.argv[2:]))
        from bgpool.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"bgpool's command line needs {error.name}: pip install 'bgpool[cli]', or bgpool[demo] for the demo",
            file=sys.stderr,
        )
        sys.exit(2)
    app()
