"""Scenarios of hosts that cut, refuse or ignore connections, restart, stall, or are slow."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Final

from bgpool.core.engine import Engine
from bgpool.lab.scenarios.evidence import silence_metadata
from bgpool.lab.scenarios.scenario import FAST, Scenario, Stage
from bgpool.lab.server import Server
from bgpool.lab.trial import Trial

__all__ = ["SCENARIOS", "black_hole_blue"]


def _cut_alone(trial: Trial) -> None:
    """Cut connections without refusing new ones: clients that reconnect at once find a read-only blue."""

    def cut() -> None:
        for server in trial.pair.servers:
            server.cut_clients()

    trial.director.change("connections_dropped", action=cut)


def _tls_cut(trial: Trial) -> None:
    """Let the server cut idle and used connections, and the pools of three workers cut those that stay in use for long.

    A thread whose connection was cut fails later, on a connection that another thread has opened. This does not happen
    every time, hence three workers.
    """
    _cut_alone(trial)
    _leave_in_use(trial, workers=3)


def _refused(trial: Trial) -> None:
    """Restart blue: for a while no process listens there, so clients do not even get an error message."""

    def restart() -> None:
        trial.director.drop_connections()
        trial.pair.blue.stop()
        trial.pair.blue.start()

    trial.director.change("connections_dropped", action=restart)


def black_hole_blue(stage: Stage) -> None:
    """Never cut connections: blue stops answering, and the metadata stay as they were."""
    silence_metadata(stage)
    blue = stage.pair.blue
    # Green has caught up before: a stopped blue replicates nothing.
    stage.director.change("connections_dropped", action=blue.refuse_clients)
    # The usual step cuts clients a second time.
    stage.director.change("caught_up", action=stage.director.wait_caught_up)
    stage.director.add("blue frozen", 0.4, blue.freeze)

    def wake() -> None:
        blue.thaw()
        stage.director.open_old_blue()

    stage.director.change("old_blue_open", at_s=2.4, action=wake)


def _black_hole_green(trial: Trial) -> None:
    green = trial.pair.green
    trial.director.add("green frozen", 0.36, green.freeze)
    trial.director.add("green thawed", 0.95, green.thaw)


def _slow(trial: Trial) -> None:
    """Give both servers a tenth of the usual CPU time, in slices."""
    stop = threading.Event()

    def stutter(server: Server) -> None:
        while not stop.wait(0.02):
            server.freeze()
            stop.wait(0.08)
            server.thaw()

    threads = [threading.Thread(target=stutter, args=(server,), daemon=True) for server in trial.pair.servers]

    def begin() -> None:
        for thread in threads:
            thread.start()

    def end() -> None:
        stop.set()
        for thread in threads:
            thread.join(5.0)
            assert not thread.is_alive()

    trial.director.add("slow", -0.3, begin)
    trial.director.add("fast again", 0.9, end)


def _kill_monitor(trial: Trial) -> None:
    trial.director.add("monitor gone", 0.25, lambda: os.kill(trial.monitor_pid(), signal.SIGKILL))


def _start_in_progress(trial: Trial) -> None:
    def start() -> None:
        trial.add_worker()

    trial.director.add("another worker", 0.5, start)


def _leave_in_use(trial: Trial, workers: int = 1) -> None:
    """Add pools whose connections are checked out for longer than the grace."""
    pool = trial.make_pool(trial.pair.dsn, name="slow", bg_drain_timeout_ms=100)
    for _ in range(workers):
        trial.add_worker(pool=pool, job="slow unit")


SLOW_PROMOTION: Final = replace(
    FAST, green_promoted_s=4.0, old_blue_open_s=4.2, names_changed_s=4.4, blue_dns_moved_s=4.6, green_dns_gone_s=4.8,
    completed_s=5.0,
)  # fmt: skip

SCENARIOS: Final = (
    Scenario("connections-cut", "every connection is cut (57P01, 2013), but none is refused", stage=_cut_alone),
    Scenario(
        "tls-cut",
        "TLS connections are cut while in use, but none is refused: OpenSSL's error queue must not affect others",
        trial={"pair_options": {"tls": True}, "workers": 2},
        # A third one briefly tries green under its new name.
        connections=3,
        stage=_tls_cut,
        engines=(Engine.MYSQL,),
    ),
    Scenario("connections-refused", "blue restarts in IN_PROGRESS: no process listens for a while", stage=_refused),
    Scenario(
        "black-hole-blue",
        "blue and its metadata stop answering (SIGSTOP: no answer, no RST)",
        evidence=("green promoted",),
        stage=black_hole_blue,
    ),
    Scenario("black-hole-green", "green stops answering until it is promoted", stage=_black_hole_green),
    Scenario("slow-hosts", "both servers answer slowly", stage=_slow),
    Scenario("slow-promotion", "green takes four seconds to be promoted", trial={"schedule": SLOW_PROMOTION}),
    Scenario(
        "beyond-timeout",
        "green is promoted long after bg_switchover_timeout_ms: callers connect by name, then to green once it shows",
        trial={"schedule": SLOW_PROMOTION},
        pool_options={"bg_switchover_timeout_ms": 2500},
    ),
    Scenario(
        "monitor-killed",
        "the monitor gets kill -9 when connections are cut",
        # A dead monitor is replaced within this time, in which DNS may change, too.
        evidence=("metadata", "green promoted", "blue DNS updated"),
        release_s=2.0,
        stage=_kill_monitor,
    ),
    Scenario("started-in-progress", "a worker starts while connections are refused", stage=_start_in_progress),
    Scenario("long-transactions", "transactions longer than the grace are cut and run again", stage=_leave_in_use),
)
