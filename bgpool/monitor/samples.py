"""The samples of the last switchovers in the run directory: one file for each, next to the history."""

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

#: The maximum absolute value of numbers in a file: a double represents it exactly.
_MOST: Final = 2**53
#: The number of columns that every version has written.
_LEAST: Final = 7


class WorkerSample(NamedTuple):
    """A sample of one worker. All but the first three fields are relative to its first sample, see table.Usage.

    Attributes:
        offset_ms: The offset, as in the summary table.
        held, waiting: The callers at that time.
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
        """Return the number of errors of each type that reached the application, by class name, without zeros."""
        return {name: count for field, name in ERRORS.items() if (count := getattr(self, field)) > 0}


class WorkerSamples(NamedTuple):
    """The samples of one worker through a switchover."""

    pid: int
    samples: tuple[WorkerSample, ...]


class Recording(NamedTuple):
    """The samples of all workers through a switchover; *left_out* more workers were not sampled.

    Attributes:
        problem: The reason for which the file cannot be used; empty if it can, or if there is none.
    """

    workers: tuple[WorkerSamples, ...] = ()
    left_out: int = 0
    problem: str = ""

    @property
    def errors(self) -> dict[str, int]:
        """Return the errors of all workers, by type."""
        total: Counter[str] = Counter()
        for worker in self.workers:
            total.update(worker.samples[-1].errors if worker.samples else {})
        return {name: total[name] for name in ERRORS.values() if total[name]}


def keep(
    files: RunFiles, began_ns: int, workers: Iterable[dict[str, Any]], left_out: int, may_write: Callable[[], bool]
) -> None:
    """Write the samples of *workers*, replacing those of the same switchover; the oldest files are removed.

    Args:
        files: The files of the deployment.
        began_ns: The time of the switchover's first event, on the wall clock.
        workers: The workers in the format of Lanes.told.
        left_out: The number of further workers.
        may_write: Returns whether the caller is still the monitor; if not, nothing is written.

    Raises:
        OSError, SegmentError: They cannot be written.
    """
    path = files.samples(began_ns)
    # Of all switchovers: pending files that dead processes left of an earlier one are removed, too.
    every = files.pending_samples
    pending = new_pending_file(every)
    fd = create_checked(pending.path, os.O_WRONLY)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            if not may_write():
                return
            file.write(f'{{"columns": {json.dumps(COLUMNS)}, "left_out": {left_out}, "workers": [')
            # One worker at a time: the encoder blocks all other threads, and one of them may have a phase to publish.
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
    """Return the recorded samples; empty without a trusted file."""
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
    """Return the recording from parsed JSON; raises various errors if it has wrong types."""
    width = len(found["columns"])
    # An earlier version wrote fewer columns.
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
