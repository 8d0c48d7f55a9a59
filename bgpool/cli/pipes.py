"""What every command does where its output cannot be written: closed, a full disk, or a reader like ``head``."""

from __future__ import annotations

import io
import os
import sys
from typing import Final

__all__ = ["NOBODY_READS", "end_with_the_reader", "open_standard_streams"]

#: As a shell has it for a program that SIGPIPE ends. Not the signal itself: it would end a command whose peer closes a
#: socket, too, and the lab before it has stopped its servers.
NOBODY_READS: Final = 141


class _Output(io.FileIO):
    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # whatever the buffer has
        except OSError as error:
            # What is still buffered is nobody's, and must not be an error once more at the end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise SystemExit(f"standard output cannot be written: {error.strerror}") from None
            # typer and rich would each make an end of their own of a broken pipe, with status 1.
            raise SystemExit(NOBODY_READS) from None


def open_standard_streams() -> None:
    """Open the null device for a standard stream that the caller has closed.

    Python has None in its place, and the next file that is opened would get its number.
    """
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            # Lower ones are open, so that the kernel gives this number.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))


def end_with_the_reader() -> None:
    """Have whatever writes to standard output end the command, with NOBODY_READS, once nobody reads it. Where it
    cannot be written for another reason, as on a full disk, the command says so and ends with status 1.

    What the output's encoding has no bytes for is written as on standard error, ``\\udcff``: a path or an argument may
    be no UTF-8, and a terminal may know no arrows.
    """
    now = sys.stdout
    if isinstance(now, io.TextIOWrapper):
        output = io.BufferedWriter(_Output(now.fileno(), "w", closefd=False))
        by_line = now.line_buffering or now.write_through
        sys.stdout = io.TextIOWrapper(output, now.encoding, "backslashreplace", line_buffering=by_line)
