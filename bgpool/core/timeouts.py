"""Checks that the time limits of a switchover fit together: bgpool's, AWS's and the application server's."""

from __future__ import annotations

from bgpool.core.limits import AWS_SHORTEST_SWITCHOVER_S, AWS_SWITCHOVER_TIMEOUT_S, REQUEST_MARGIN_S

__all__ = ["hold_misfit", "timer_misfit"]


def timer_misfit(switchover_ms: int) -> str:
    """Return a warning if bgpool may end a switchover while AWS still works on it; otherwise empty.

    Args:
        switchover_ms: bg_switchover_timeout_ms; 0 if not known.
    """
    if not switchover_ms or switchover_ms >= AWS_SWITCHOVER_TIMEOUT_S * 1000:
        return ""
    seconds = switchover_ms // 1000
    shorter = (
        f"start it with --switchover-timeout {seconds} or less, or " if seconds >= AWS_SHORTEST_SWITCHOVER_S else ""
    )
    return (
        f"bg_switchover_timeout_ms is {_seconds(switchover_ms)}, and AWS allows a switchover "
        f"{AWS_SWITCHOVER_TIMEOUT_S} s by default: {shorter}set "
        f"bg_switchover_timeout_ms={AWS_SWITCHOVER_TIMEOUT_S * 1000} or more"
    )


def hold_misfit(hold_ms: int, busy_ms: int) -> str:
    """Return a warning if the application server may end a worker while its caller is held; otherwise empty.

    Args:
        hold_ms: The longest hold of a caller.
        busy_ms: The time after which the server ends a worker that is busy with one request or task; 0 for never, or
            not known.
    """
    margin_ms = int(REQUEST_MARGIN_S * 1000)
    if not busy_ms or hold_ms + margin_ms <= busy_ms:
        return ""
    shorter = f", or bg_connect_timeout_ms={busy_ms - margin_ms} or less" if busy_ms > margin_ms else ""
    return (
        f"a caller is held for up to {_seconds(hold_ms)} (bg_connect_timeout_ms or the pool's timeout), and the server "
        f"ends a worker that is busy for {_seconds(busy_ms)}: set the server's timeout to "
        f"{_seconds(hold_ms + margin_ms)} or more{shorter}"
    )


def _seconds(ms: int) -> str:
    return f"{ms / 1000:g} s"
