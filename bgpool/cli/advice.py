"""The end of a watch: its exit status, and advice."""

from __future__ import annotations

from typing import Final

from bgpool.core.phase import SWITCHING, Phase
from bgpool.report import Status

__all__ = ["COMPLETED", "COMPLETED_BY_TIMER", "INTERRUPTED", "ROLLED_BACK", "TIME_IS_UP", "advice"]

COMPLETED: Final = 0
ROLLED_BACK: Final = 1
TIME_IS_UP: Final = 3
COMPLETED_BY_TIMER: Final = 4
INTERRUPTED: Final = 130

_DONE: Final = (
    "the switchover is complete and callers connect to green; check your application, look at bgpool timeline, and "
    "delete the deployment in AWS when you no longer need old blue"
)
_BY_TIMER: Final = (
    "the switchover counts as over by the timer, and nothing has shown that green was promoted; check in AWS which "
    "side is production before you do anything else"
)
_BACK: Final = (
    "the switchover was rolled back and callers connect to blue; find the reason in the deployment's events in AWS, "
    "remove it, and switch over again when bgpool status --ready succeeds"
)


def advice(code: int, status: Status | None) -> str:
    """Return one sentence of advice for the operator at the end of a watch.

    Args:
        code: The exit status, one of the constants above.
        status: The last status; None if there was none.
    """
    if status is None:
        return "no deployment was found to watch; start the application, or name its directory with --run-dir"
    return f"bg_id {status.bg_id!r}: {_what_to_do(code, status)}"


def _what_to_do(code: int, status: Status) -> str:
    if code == ROLLED_BACK:
        return _BACK
    if status.phase is Phase.COMPLETED:
        return _BY_TIMER if status.by_timer else _DONE
    end = "stopped" if code == INTERRUPTED else "the time is up"
    if status.phase in SWITCHING:
        return (
            f"{end} in {status.phase.name}; bgpool goes on without this command: watch again, and look at the "
            "deployment in AWS if it takes longer than its timeout there"
        )
    if status.ready:
        return f"{end}, and no switchover has begun; this host is ready: start the switchover in AWS and watch again"
    return f"{end}, and no switchover has begun; this host is not ready: {status.missing[0]}"
