"""``bgpool timeline``: print and draw the last switchovers, for the post-mortem. Opens no connection."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bgpool.base_errors import Error
from bgpool.cli.timeline.page import render
from bgpool.cli.timeline.picture import draw
from bgpool.cli.timeline.switchover import RecordedSwitchover, deployments, stories, told_errors
from bgpool.core.timeline import summary_table
from bgpool.report import Deployment, find
from bgpool.segment import history
from bgpool.segment.paths import RunFiles, look_in

__all__ = ["NothingRecorded", "Outputs", "Unusable", "run"]


class NothingRecorded(Exception):
    """There is no recorded switchover."""


class Unusable(Exception):
    """The request cannot be fulfilled; the text is the reason."""


class Outputs(NamedTuple):
    """The files to draw to, in addition to the table."""

    html: Path | None = None
    svg: Path | None = None
    png: Path | None = None


def run(count: int, bg_id: str | None, run_dir: Path | None, outputs: Outputs, *, as_json: bool) -> None:
    """Print the last *count* switchovers, and draw them.

    Raises:
        NothingRecorded: There are none.
        Unusable: The directory cannot be trusted, a file cannot be written, or a library is missing.
    """
    files = _files(bg_id, run_dir)
    told, problems = stories(files, count)
    if not told:
        if problems:
            raise Unusable("\n".join(problems))
        raise NothingRecorded(_nothing(bg_id, files))
    for problem in problems:
        print(problem, file=sys.stderr)
    if as_json:
        print(json.dumps([story.as_dict() for story in told]))
    else:
        print("\n\n".join(map(_text, told)))
    _draw(told, outputs)


def _files(bg_id: str | None, run_dir: Path | None) -> RunFiles:
    try:
        # Like status, except that an untrusted history is an error here.
        there = find(bg_id, run_dir)
    except Error as error:
        raise Unusable(str(error)) from None
    if bg_id is not None:
        return there[0].files
    found = deployments(look_in(run_dir)) if there else ()
    if not found:
        raise NothingRecorded(f"no switchover is recorded in {look_in(run_dir)}")
    if len(found) > 1:
        raise Unusable(f"there are several: choose one with --bg-id; there are {_names(found)}")
    return found[0]


def _nothing(bg_id: str | None, files: RunFiles) -> str:
    """Return a text if there is no switchover of *bg_id*, or of *files*, with the bg_ids that have some."""
    name = repr(bg_id) if bg_id is not None else _names([files])
    others = _names(deployment.files for deployment in find(None, files.directory) if history.read(deployment.files))
    text = f"no switchover of bg_id {name} is recorded in {files.directory}"
    return f"{text}; there are some of {others}" if others else text


def _names(found: Iterable[RunFiles]) -> str:
    """Return the bg_ids of *found*: the names of their files may be digests, which --bg-id does not accept."""
    return ", ".join(repr(Deployment(files).status().bg_id) for files in found)


def _text(story: RecordedSwitchover) -> str:
    lines = [f"bg_id {story.bg_id!r}: {story.outcome}", summary_table(story.events)]
    hold_s = story.hold_s
    lines.append(
        f"held for {hold_s:.3f} s from IN_PROGRESS; evidence of the release: {story.evidence}"
        if hold_s is not None
        else "no caller was held: IN_PROGRESS was never read"
    )
    crowd = story.recording.workers
    if crowd:
        # The maximum of all workers together is not known, because they write their rows at different times.
        held = sum(max(sample.held for sample in worker.samples) for worker in crowd if worker.samples)
        failed, cut = (
            sum(getattr(worker.samples[-1], name) for worker in crowd if worker.samples) for name in ("failed", "cut")
        )
        lines.append(
            f"workers {len(crowd)}, callers held at most {held}, failed checkouts {failed}, cut connections {cut}"
        )
    if told := told_errors(story.recording):
        lines.append(told)
    return "\n".join(lines)


def _draw(told: Sequence[RecordedSwitchover], outputs: Outputs) -> None:
    if outputs.html is not None:
        _write(outputs.html, render(told).encode())
    if outputs.svg is not None:
        _write(outputs.svg, draw(told).encode())
    if outputs.png is not None:
        _write(outputs.png, _png(draw(told)))


def _png(svg: str) -> bytes:
    try:
        import cairosvg
    except ModuleNotFoundError as error:
        raise Unusable(f"--png needs {error.name}: pip install 'bgpool[png]'; --svg and --html need nothing") from None
    except OSError as error:
        raise Unusable(f"--png needs the cairo library of the system (libcairo2): {error}") from None
    drawn: bytes = cairosvg.svg2png(bytestring=svg.encode(), scale=2)
    return drawn


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror}") from None
