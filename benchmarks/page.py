"""Fill docs/benchmarks.md with figures from results: ``python -m benchmarks.page``. No figure is typed by hand."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import aims
from benchmarks.__main__ import load, merged
from benchmarks.plot import draw, picture
from benchmarks.render import as_markdown

__all__ = ["fill", "main"]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "benchmarks.md"
#: The results that the page was made from, kept next to it.
RESULTS: Final = ROOT / "docs" / "benchmarks.json"
IMAGES: Final = ROOT / "docs" / "images"
_BLOCK: Final = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Mapping[str, Any]) -> str:
    """Return *text* with its blocks ``<!-- figures: NAME --> ... <!-- end -->`` filled from *results*.

    Raises:
        ValueError: A block has no results, or results have no block.
    """
    blocks = {
        "machine": _machine(results),
        "aims": aims.as_markdown({name: merged(runs) for name, runs in results["runs"].items()}),
        **{name: _figures(name, runs) for name, runs in results["runs"].items()},
    }
    found = [match.group(2) for match in _BLOCK.finditer(text)]
    if sorted(found) != sorted(blocks):
        raise ValueError(f"the page has blocks for {sorted(found)}, and the results are of {sorted(blocks)}")
    return _BLOCK.sub(lambda match: f"{match.group(1)}\n{blocks[match.group(2)]}\n{match.group(3)}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the page and draw its pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="results.json of python -m benchmarks")
    path = parser.parse_args(arguments).results
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["quick"]:
        parser.error(f"{path} was measured with --quick: such figures mean little")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if path.resolve() != RESULTS:
        shutil.copyfile(path, RESULTS)
    for runs in results["runs"].values():
        result = merged(runs)
        for plot in result.plots:
            table = next(table for table in result.tables if table.name == plot.table)
            draw(plot, table, IMAGES / picture(plot))
    return 0


def _figures(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    result = merged([dict(run) for run in runs])
    times = ", ".join(f"{run['at'].replace('T', ' ')[:16]} ({run['took_s']:.0f} s)" for run in runs)
    parts = [load(name).QUESTION + "\n"]
    parts += [as_markdown(table) for table in result.tables if table.shown]
    parts += [f"![{plot.title}](images/{picture(plot)})\n" for plot in result.plots]
    parts.append(
        f"Medians of {len(runs)} repetitions, with the smallest and the largest value in parentheses. "
        f"Started (UTC): {times}.\n"
    )
    return "\n".join(parts)


def _machine(results: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    loads = [run["load_before"] for runs in results["runs"].values() for run in runs]
    load = f"Load average at the start of a run, including the after-effect of the run before: at most {max(loads)}."
    return f"Machine: {machine}.\n\nVersions: {versions}.\n\n{load}\n"


if __name__ == "__main__":
    sys.exit(main())
