"""The samples of the last switchovers in the run directory: a file for each, beside the history."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from bgpool.base_errors import SegmentError
from bgpool.core.limits import SAMPLED_SWITCHOVERS, SAMPLED_WORKERS, SAMPLES, SAMPLES_BYTES
from bgpool.monitor.lanes import COLUMNS
from bgpool.segment.paths import RunFiles, create_checked, open_checked
from bgpool.segment.pending_files import new_pending_file, pending_files_of, remove
from bgpool.segment.table import ERRORS

__all__ = ["Recording", "WorkerSample", "WorkerSamples", "keep", "read"]

#: No number in a file may be further from zero: a double holds it exactly.
_MOST: Final = 2**53
#: Columns that every version has written.
_LEAST: Final = 7


class WorkerSample(NamedTuple):
    """One worker at one moment; all but the first three are counted from its first sample, as segment.table.Usage says.

    Attributes:
        offset_ms: As in the summary table.
        held, waiting: Callers, at that moment.
    """

    offset_ms: int
    held: int
    waiting: int
    served: int
    failed: int
    drained: int
    cut: int
    repeated: int = 0
    hold_timeouts: int = 0
    green_rejected: int = 0
    interrupted: int = 0
    outcome_unknown: int = 0
    pool_timeouts: int = 0
    too_many_requests: int = 0
    other_errors: int = 0

    @property
    def errors(self) -> dict[str, int]:
        """How many errors of each type reached the application, by the names of their classes; those there were."""
        return {name: count for field, name in ERRORS.items() if (count := getattr(self, field)) > 0}


class WorkerSamples(NamedTuple):
    """One worker through a switchover."""

    pid: int
    samples: tuple[WorkerSample, ...]


class Recording(NamedTuple):
    """All workers through a switchover; *left_out* more of them were not sampled.

    Attributes:
        problem: Why there is a file and nothing of it can be told; empty where there is none, or all is well.
    """

    workers: tuple[WorkerSamples, ...] = ()
    left_out: int = 0
    problem: str = ""

    @property
    def errors(self) -> dict[str, int]:
        """Those of all workers, by type."""
        total: Counter[str] = Counter()
        for worker in self.workers:
            total.update(worker.samples[-1].errors if worker.samples else {})
        return {name: total[name] for name in ERRORS.values() if total[name]}


def keep(
    files: RunFiles, began_ns: int, workers: Iterable[dict[str, Any]], left_out: int, may_write: Callable[[], bool]
) -> None:
    """Write *workers* down, over what was written of the same switchover before; the oldest are removed.

    Args:
        files: Whose.
        began_ns: When the switchover's first event was, on the wall clock.
        workers: As Lanes.told makes them.
        left_out: How many more there were.
        may_write: Whether the caller is still the monitor; nothing is written if not.

    Raises:
        OSError, SegmentError: It cannot be written.
    """
    path = files.samples(began_ns)
    # Whatever the switchover: what the dead have left of an earlier one is removed, too.
    every = files.pending_samples
    pending = new_pending_file(every)
    fd = create_checked(pending.path, os.O_WRONLY)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            if not may_write():
                return
            file.write(f'{{"columns": {json.dumps(COLUMNS)}, "left_out": {left_out}, "workers": [')
            # One at a time: the encoder lets no other thread run, and one of these may have a phase to publish.
            for number, worker in enumerate(workers):
                file.write(",\n" * (number > 0) + json.dumps(worker))
            file.write("]}\n")
        pending.path.replace(path)
    finally:
        for left in {pending, *pending_files_of(every)}:
            remove(left)
    for old in files.all_samples()[:-SAMPLED_SWITCHOVERS]:
        old.unlink(missing_ok=True)


def read(files: RunFiles, began_ns: int) -> Recording:
    """What was written; nothing where there is no file, or none to be trusted."""
    path = files.samples(began_ns)
    try:
        fd = open_checked(path, os.O_RDONLY)
    except FileNotFoundError:
        return Recording()
    except SegmentError as error:
        return Recording(problem=f"the samples are refused: {error}")
    with os.fdopen(fd, "rb") as file:
        data = file.read(SAMPLES_BYTES + 1)
    if len(data) <= SAMPLES_BYTES:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return _recording(json.loads(data))
    return Recording(problem=f"the samples are damaged: {path} is no recording")


def _recording(found: Any) -> Recording:
    """What JSON says, if that is a recording; raises whatever a wrong type leads to if not."""
    width = len(found["columns"])
    # An earlier version wrote fewer.
    if found["columns"] != list(COLUMNS)[:width] or width < _LEAST:
        raise ValueError("other columns")
    workers = tuple(
        WorkerSamples(
            _number(worker["pid"]), tuple(_sample(values, width) for values in worker["samples"][: SAMPLES + 1])
        )
        for worker in found["workers"][:SAMPLED_WORKERS]
    )
    return Recording(workers, _number(found["left_out"]))


def _sample(values: Any, width: int) -> WorkerSample:
    if len(values) != width:
        raise ValueError("not as many numbers as columns")
    return WorkerSample(*map(_number, values))


def _number(value: object) -> int:
    if type(value) is not int or abs(value) > _MOST:
        raise TypeError("a whole number was expected")
    return value
