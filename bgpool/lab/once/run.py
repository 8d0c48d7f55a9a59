"""Many switchovers or failovers in sequence; a journal records each, and recorded ones are not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bgpool.core.engine import Engine
from bgpool.lab.errors import LabError, ProgramsError
from bgpool.lab.once.draws import Draw, draw
from bgpool.lab.once.play import play
from bgpool.lab.once.results import Part, Result

__all__ = ["Journal", "Run", "play_all"]


class Journal:
    """Lines of JSON, one for each completed switchover, with its servers and its result.

    Several runs may use one file at the same time: each line is written in one call.
    """

    def __init__(self, path: Path | None) -> None:
        """Use the file *path*, which is made if it is missing; None for no file."""
        self._path: Final = path

    def results(self, title: str) -> dict[int, Result]:
        """Return the results under *title*, by seed; for a seed that was run repeatedly, the last one.

        Raises:
            ValueError: The file is not a journal.
        """
        found: dict[int, Result] = {}
        if self._path is None or not self._path.exists():
            return found
        for number, text in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                line = json.loads(text)
                if line["title"] == title:
                    result = Result.from_json(line)
                    found[result.seed] = result
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path}, line {number}, is not a line of a journal: {error!r}") from None
        return found

    def add(self, title: str, result: Result) -> None:
        """Append a line."""
        if self._path is None:
            return
        text = json.dumps({"title": title, **result.to_json()}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Run:
    """The parameters of a run.

    Attributes:
        engine: The engine of the servers.
        title: The run's name in the journal: the servers, and the kind of events.
        seed: The first seed; the others follow.
        count: The number of switchovers or failovers.
        failover: True for failovers without a deployment, instead of switchovers.
        pair_options: More keywords for Pair.
    """

    engine: Engine
    title: str = ""
    seed: int = 1
    count: int = 50
    failover: bool = False
    pair_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def draws(self) -> list[Draw]:
        """Return the events of each."""
        seeds = range(self.seed, self.seed + self.count)
        return [draw(seed, self.engine, failover=self.failover) for seed in seeds]


def play_all(
    run: Run, journal: Journal | None = None, tell: Callable[[Result, bool], object] = lambda *_: None
) -> Iterator[Result]:
    """Run all that is missing in the journal, and yield each result, in the order of seeds.

    Args:
        run: The parameters of the run.
        journal: The journal of earlier runs.
        tell: A callable that receives each result, and True if it is from the journal.

    Raises:
        ProgramsError: The servers' programs are missing or unusable.
    """
    journal = journal or Journal(None)
    known = journal.results(run.title)
    for drawn in run.draws:
        result = known.get(drawn.seed)
        is_known = result is not None
        if result is None:
            result = _play(drawn, run)
            journal.add(run.title, result)
        tell(result, is_known)
        yield result


def _play(drawn: Draw, run: Run) -> Result:
    try:
        return play(drawn, run.engine, run.pair_options)
    except ProgramsError:
        raise
    except LabError as error:
        why = (f"the lab failed: {error}",)
        return Result(drawn.seed, drawn.story, drawn.hold, 0, 0, 0, 0, 0, 0, 0, 0, Part(), Part(), why, 0.0)
