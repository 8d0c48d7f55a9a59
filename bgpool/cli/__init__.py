"""The command line: ``bgpool``. Its dependencies are an extra, so that users of the library do not need them."""

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
        # Flush here, where a reader that has exited still determines the exit status.
        print(end="", flush=True)


def _run() -> None:
    try:
        if sys.argv[1:2] == ["status"]:
            # Before typer, whose import takes longer than status may take: status is often polled during a switchover.
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
