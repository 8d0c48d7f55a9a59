"""Run the benchmarks: ``python -m benchmarks [NAME ...]``, all of them by default."""

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

#: The benchmarks in the order of the page: first the switchover, then the costs of being ready for one.
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
#: The benchmarks that can be run by name and are not on the page yet.
NEW: Final = ("mysql_release",)
_OUT: Final = Path("bench-results")
_FORMAT: Final = 1


class Benchmark(Protocol):
    """A module of this package that measures.

    Attributes:
        TITLE: The heading.
        QUESTION: The question that the benchmark answers, and its method.
    """

    TITLE: str
    QUESTION: str

    def run(self, *, quick: bool) -> Result:
        """Measure once. With *quick* it takes less than 20 seconds, and the figures mean little."""


def load(name: str) -> Benchmark:
    """Return the benchmark of that name."""
    found: Any = importlib.import_module(f"benchmarks.{name}")
    return found  # type: ignore[no-any-return]  # a module that has what Benchmark has


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and keep everything.

    Repetitions are the outer loop, so that a slow hour of the machine affects all benchmarks.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all by default")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions, 1 to 20 (3)")
    parser.add_argument("--quick", action="store_true", help="measure less, only to see that they work")
    parser.add_argument("--add", action="store_true", help="add to the repetitions that are kept")
    parser.add_argument("--out", type=Path, default=_OUT, metavar="DIR", help=f"results and pictures ({_OUT})")
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
                # Repeated at the end. One failure does not discard an hour of other measurements.
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
    """Return the runs in ``results.json`` of *out* with this machine, these versions, and this *quick*, by name."""
    path = out / "results.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    frame = _frame(quick=quick)
    return dict(before["runs"]) if {key: before.get(key) for key in frame} == frame else {}


def keep(out: Path, measured: dict[str, list[dict[str, Any]]], *, quick: bool) -> None:
    """Add to ``results.json`` of *out*. If its results are from another machine, all of them are replaced."""
    runs = {**kept(out, quick=quick), **measured}
    everything = {**_frame(quick=quick), "runs": {name: runs[name] for name in (*NAMES, *NEW) if name in runs}}
    text = json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")


def _frame(*, quick: bool) -> dict[str, Any]:
    return {"format": _FORMAT, "machine": machine(), "versions": versions(), "quick": quick}


def merged(repetitions: Sequence[dict[str, Any]]) -> Result:
    """Return the medians of *repetitions*."""
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
