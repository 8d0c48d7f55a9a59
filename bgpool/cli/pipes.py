"""Handling of output that cannot be written, for all commands: closed, a full disk, or a reader such as ``head``."""

from __future__ import annotations

import io
import os
import sys
from typing import Final

__all__ = ["NOBODY_READS", "end_with_the_reader", "open_standard_streams"]

#: The status that a shell reports for a program that SIGPIPE ends. The signal itself is not used: it would also end a
#: command whose peer closes a socket, and the lab before it has stopped its servers.
NOBODY_READS: Final = 141


class _Output(io.FileIO):
    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # the buffer's type
        except OSError as error:
            # Discard buffered output, so that it does not cause another error at exit.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise SystemExit(f"standard output cannot be written: {error.strerror}") from None
            # typer and rich would each handle a broken pipe in their own way, with status 1.
            raise SystemExit(NOBODY_READS) from None


def open_standard_streams() -> None:
    """Open the null device for a standard stream that the caller has closed.

    Python sets such a stream to None, and the next opened file would get its number.
    """
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            # All lower numbers are open, so that the kernel returns this one.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))


def end_with_the_reader() -> None:
    """End the command with NOBODY_READS when standard output is no longer read.

    If it cannot be written for another reason, such as a full disk, print an error and exit with status 1.

    Characters that the output's encoding lacks are written as on standard error, ``\\udcff``: a path or an argument may
    not be valid UTF-8, and a terminal may lack arrows.
    """
    now = sys.stdout
    if isinstance(now, io.TextIOWrapper):
        output = io.BufferedWriter(_Output(now.fileno(), "w", closefd=False))
        by_line = now.line_buffering or now.write_through
        sys.stdout = io.TextIOWrapper(output, now.encoding, "backslashreplace", line_buffering=by_line)
