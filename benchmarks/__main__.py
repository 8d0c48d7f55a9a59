"""Measure: ``python -m benchmarks [NAME ...]``, all of them by default."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks import aims
from benchmarks.machine import machine, versions
from benchmarks.plot import draw, picture
from benchmarks.render import as_text
from benchmarks.result import Result, merge
from bgpool.lab.errors import LabError

#: In the order in which they are read: what a switchover comes to, then what it costs to be ready for one.
NAMES: Final = (
    "switchover",
    "sizes",
    "storm",
    "processes",
    "checkout",
    "units",
    "wakeup",
    "coroutines",
    "receipts",
    "mysql",
    "status",
    "growth",
)
#: Those that can be run by name and are not on the page yet.
NEW: Final = ("mysql_release",)
_OUT: Final = Path("bench-results")
_FORMAT: Final = 1


class Benchmark(Protocol):
    """A module of this package that measures.

    Attributes:
        TITLE: Its heading.
        QUESTION: What is asked, and how.
    """

    TITLE: str
    QUESTION: str

    def run(self, *, quick: bool) -> Result:
        """Measure once; *quick* for less than 20 seconds, and for figures that say little."""


def load(name: str) -> Benchmark:
    """The benchmark of that name."""
    found: Any = importlib.import_module(f"benchmarks.{name}")
    return found  # type: ignore[no-any-return]  # a module that has what Benchmark has


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and keep everything; repetitions are the outer loop, so that a slow hour meets all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; all by default")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions, 1 to 20 (3)")
    parser.add_argument("--quick", action="store_true", help="only to see that they work: less of everything")
    parser.add_argument("--add", action="store_true", help="to the repetitions that are kept, instead of anew")
    parser.add_argument("--out", type=Path, default=_OUT, metavar="DIR", help=f"for results and pictures ({_OUT})")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in (*NAMES, *NEW)]
    if unknown:
        parser.error(f"no benchmark {', '.join(map(repr, unknown))}; there are {', '.join(NAMES)}")
    if not 1 <= options.repeat <= 20:
        parser.error(f"--repeat must be from 1 to 20, not {options.repeat}")
    names = [name for name in (*NAMES, *NEW) if name in (options.names or NAMES)]
    options.out.mkdir(parents=True, exist_ok=True)
    before = kept(options.out, quick=options.quick) if options.add else {}
    measured: dict[str, list[dict[str, Any]]] = {name: list(before.get(name, ())) for name in names}
    failures = []
    for repetition in range(1, options.repeat + 1):
        for name in names:
            print(f"{name}: repetition {repetition} of {options.repeat}", file=sys.stderr, flush=True)
            try:
                measured[name].append(_measure(load(name), quick=options.quick))
            except LabError as error:
                # Said again at the end; an hour of the others is not thrown away for it.
                failures.append(f"{name}, repetition {repetition}: {error}")
                continue
            keep(options.out, {name: measured[name]}, quick=options.quick)
    for name in names:
        if measured[name]:
            show(name, measured[name], options.out)
    print(aims.as_text({name: merged(runs) for name, runs in measured.items() if runs}))
    print(f"kept in {options.out}: results.json and the pictures", file=sys.stderr)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _measure(benchmark: Benchmark, *, quick: bool) -> dict[str, Any]:
    began, busy = time.monotonic(), os.getloadavg()[0]
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    result = benchmark.run(quick=quick)
    return {
        "at": at,
        "took_s": round(time.monotonic() - began, 1),
        "load_before": round(busy, 2),
        "result": result.as_json(),
    }


def kept(out: Path, *, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """What ``results.json`` of *out* has of this machine, these versions, and such haste; by name."""
    path = out / "results.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    frame = _frame(quick=quick)
    return dict(before["runs"]) if {key: before.get(key) for key in frame} == frame else {}


def keep(out: Path, measured: dict[str, list[dict[str, Any]]], *, quick: bool) -> None:
    """Add to ``results.json`` of *out*; what was measured of the same on another machine is replaced, all of it."""
    runs = {**kept(out, quick=quick), **measured}
    everything = {**_frame(quick=quick), "runs": {name: runs[name] for name in (*NAMES, *NEW) if name in runs}}
    text = json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")


def _frame(*, quick: bool) -> dict[str, Any]:
    return {"format": _FORMAT, "machine": machine(), "versions": versions(), "quick": quick}


def merged(repetitions: Sequence[dict[str, Any]]) -> Result:
    """The medians of what was kept."""
    return merge([Result.from_json(repetition["result"]) for repetition in repetitions])


def show(name: str, repetitions: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the tables, and draw the pictures into *out*."""
    result = merged(repetitions)
    print(f"\n{load(name).TITLE}: {load(name).QUESTION}\n")
    for table in result.tables:
        if table.shown:
            print(as_text(table))
    for plot in result.plots:
        table = next(table for table in result.tables if table.name == plot.table)
        draw(plot, table, out / picture(plot))


if __name__ == "__main__":
    sys.exit(main())
