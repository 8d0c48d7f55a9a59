"""``bgpool demo``: run a trial, show its progress, and print its verdict."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bgpool.cli.view import make_console, plain
from bgpool.core.engine import Engine
from bgpool.core.timeline import summary_table
from bgpool.lab import Event
from bgpool.lab.report import Report
from bgpool.lab.server_factories import find_servers
from bgpool.lab.trial import Trial

__all__ = ["run"]

_COLOURS: Final = {"IN_PROGRESS": "bold red", "POST": "bold green", "COMPLETED": "green", "PREPARATION": "yellow"}


def run(engine: Engine, options: Mapping[str, Any], workers: int, threads: int, *, kill_monitor: bool) -> bool:
    """Run a trial and show it. Return whether all rows are correct and no thread or worker is missing.

    Args:
        engine: The database engine.
        options: Keywords for `Pair`, including ``programs`` and ``upgrade``.
        workers, threads: Their numbers.
        kill_monitor: True to kill the monitor in IN_PROGRESS.

    Raises:
        LabError: The servers' programs are missing, or failed.
    """
    console = make_console()
    began = time.monotonic()
    servers = find_servers(engine, options["programs"], options["upgrade"])
    console.print(f"Starting a blue and a green {plain(servers)}, green a replica of blue ...")
    trial = Trial(engine=engine, workers=workers, threads=threads, pair_options=dict(options))
    story = _Progress(console, trial, began, kill_monitor=kill_monitor)
    trial.on_event.append(story.tell)
    with trial:
        console.print(f"Both are up. {workers} pre-forked workers x {threads} threads write a ledger.")
        with story.live():
            report = trial.run()
        _show(console, report, workers * threads)
    return report.clean


class _Progress:
    """The progress: a table that is redrawn on a terminal, lines elsewhere."""

    def __init__(self, console: Console, trial: Trial, began: float, *, kill_monitor: bool) -> None:
        self._console = console
        self._trial = trial
        self._began = began
        self._kill_monitor = kill_monitor

    def tell(self, event: Event) -> None:
        """Show one step of the director, and the workers' state at that time."""
        held = sum(worker.held for worker in self._trial.crew)
        rate = sum(worker.rate(0.5) for worker in self._trial.crew)
        self._console.print(
            Text.assemble(
                (f"{event.monotonic_s - self._began:6.2f} s", "dim"),
                f"  database: {event.name.replace('_', ' '):<22} ",
                (f"rows/s {rate:5.0f}  held {held}", "dim"),
            )
        )
        if self._kill_monitor and event.name == "in_progress":
            time.sleep(0.2)
            pid = self._trial.monitor_pid()
            os.kill(pid, signal.SIGKILL)
            self._console.print(f"          killed the monitor, process {pid}")

    @contextmanager
    def live(self) -> Iterator[None]:
        """Redraw the workers within the block."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._draw, console=self._console, refresh_per_second=10, transient=True):
            yield

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for title in ("worker", "phase", "rows/s", "held", "rows", "errors"):
            table.add_column(title, justify="left" if title in ("worker", "phase") else "right")
        for worker in self._trial.crew:
            table.add_row(
                f"{worker.number} (pid {worker.pid})",
                Text(worker.phase or "-", style=_COLOURS.get(worker.phase, "")),
                f"{worker.rate():.0f}",
                str(worker.held),
                str(len(worker.acknowledged)),
                str(len(worker.errors)),
            )
        return Group(Text(""), table)


def _show(console: Console, report: Report, threads: int) -> None:
    verdict = report.verdict
    if report.snapshot is not None:
        console.print(plain(summary_table(report.snapshot.timeline)), soft_wrap=True)
    rows = [
        ("rows acknowledged", f"{verdict.acknowledged}"),
        ("  of these missing on green (lost)", f"{verdict.lost}"),
        ("rows on old blue that green has not (split)", f"{verdict.split}"),
        ("rows written twice (doubled)", f"{verdict.doubled}"),
        (f"errors seen by the {threads} threads", f"{report.errors}"),
        ("database down, for a client that knows both addresses", f"{report.down_s:.3f} s"),
        ("longest gap between two writes of a thread", f"{report.longest_gap_s:.3f} s"),
        ("  excess of that over the down time", f"{report.excess_s:.3f} s"),
        ("monitoring connections on the pair", f"{report.monitoring_connections}"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for example in report.error_examples:
        console.print(f"  {plain(example)}", style="dim", soft_wrap=True)
    if report.clean:
        console.print("CLEAN: nothing lost, nothing doubled, nothing split.", style="bold green")
    else:
        console.print(
            f"NOT CLEAN: {verdict!r}, {report.missing} threads or workers missing", style="bold red", soft_wrap=True
        )
