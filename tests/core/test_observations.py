"""The choice of a monitor's parameters: its own observations, and the offers of other processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgpool.core.events import Event, Instant, MetadataAbsent, ProbeFailed, StatusRead, StatusRow
from bgpool.core.limits import BLIND_S, LOCKED_OUT_S, OBSERVATIONS, SAME_NAME_TRIES
from bgpool.core.machine import Rules, step
from bgpool.core.observations import (
    BLIND,
    Observation,
    Parameters,
    Visibility,
    begin_to_watch,
    leave,
    should_leave,
    worth,
)
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Snapshot

S = 1_000_000_000
HOST = "ledger.c0abc.eu-west-1.rds.amazonaws.com"
APP, OTHER = Parameters("app", HOST, 5432, "app"), Parameters("app", HOST, 5432, "other")
ELSEWHERE = Parameters("app", "audit.c0abc.eu-west-1.rds.amazonaws.com", 5432, "app")
ROW = StatusRow(HOST, 5432, "BLUE_GREEN_DEPLOYMENT_SOURCE", "AVAILABLE")


def at(second: float) -> Instant:
    return Instant(int(second * S), int(second * S))


def watching(parameters: Parameters, second: float = 0, *, since: Snapshot | None = None) -> Snapshot:
    return begin_to_watch(since or Snapshot("1"), parameters, at(second))


def told(snapshot: Snapshot, *events: Event) -> Snapshot:
    for event in events:
        snapshot = step(snapshot, event, Rules())
    return snapshot


def absent(second: float) -> Event:
    return MetadataAbsent(at(second), Role.SOURCE, "GRANT")


def refused(second: float) -> Event:
    return ProbeFailed(at(second), Role.SOURCE, "password authentication failed", refused=True)


def sight_of(snapshot: Snapshot) -> Visibility:
    return snapshot.observations[-1].visibility


@pytest.mark.parametrize(
    ("event", "visibility"),
    [
        (StatusRead(at(1), Role.SOURCE, (ROW,)), Visibility.SEEN),
        (StatusRead(at(1), Role.SOURCE, ()), Visibility.EMPTY),
        (absent(1), Visibility.MISSING),
        (refused(1), Visibility.REFUSED),
        (ProbeFailed(at(1), Role.SOURCE, "connection refused"), Visibility.UNTRIED),
        (ProbeFailed(at(LOCKED_OUT_S), Role.SOURCE, "connection refused"), Visibility.SILENT),
        (MetadataAbsent(at(1), Role.TARGET, "GRANT"), Visibility.UNTRIED),
    ],
)
def test_what_blue_says_tells_what_the_parameters_are_good_for(event: Event, visibility: Visibility) -> None:
    assert sight_of(told(watching(APP), event)) is visibility


def test_a_server_that_answered_once_is_not_given_up_for_its_silence() -> None:
    failed = ProbeFailed(at(10 * LOCKED_OUT_S), Role.SOURCE, "connection refused")
    assert sight_of(told(watching(APP), absent(1), failed)) is Visibility.MISSING


def test_what_was_seen_stays_so_while_there_is_a_deployment() -> None:
    seen = told(watching(APP), StatusRead(at(1), Role.SOURCE, (ROW,)))
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED):
        later = replace(seen, phase=phase, deadline_ns=100 * S)
        assert sight_of(told(later, refused(2))) is Visibility.SEEN
        assert not should_leave(later, Visibility.SEEN, 3600 * S)
    gone = told(seen, StatusRead(at(3), Role.SOURCE, ()))
    assert (gone.phase, sight_of(gone)) == (Phase.NOT_CREATED, Visibility.EMPTY)


def test_a_blind_monitor_leaves_for_what_is_better_and_only_for_that() -> None:
    blind = told(watching(OTHER), absent(1))
    later_ns = int((1 + BLIND_S) * S)
    assert should_leave(blind, Visibility.UNTRIED, later_ns)
    assert not should_leave(blind, Visibility.UNTRIED, later_ns - S), "it has only just begun"
    assert not should_leave(blind, Visibility.MISSING, later_ns)
    assert not should_leave(blind, Visibility.NONE, later_ns)
    assert not should_leave(watching(OTHER), Visibility.UNTRIED, later_ns), "no server has answered yet"
    assert not should_leave(replace(blind, hold_until_ns=later_ns + 1), Visibility.UNTRIED, later_ns), "an order stands"
    assert should_leave(replace(blind, hold_until_ns=later_ns), Visibility.UNTRIED, later_ns)


def test_a_refused_login_is_given_time() -> None:
    blind = told(watching(OTHER), refused(1))
    assert not should_leave(blind, Visibility.UNTRIED, int((LOCKED_OUT_S) * S))
    assert should_leave(blind, Visibility.UNTRIED, int((1 + LOCKED_OUT_S) * S))


def test_two_that_see_nothing_do_not_alternate() -> None:
    """Each is tried once; the last one stays, until it is time to try again."""
    first = leave(told(watching(OTHER), absent(1)), at(5))
    assert worth(first.observations, APP, 5 * S) is Visibility.UNTRIED
    second = told(watching(APP, 6, since=first), absent(7))
    assert worth(second.observations, OTHER, 60 * S) is Visibility.MISSING
    assert not should_leave(second, worth(second.observations, OTHER, 60 * S), 60 * S)
    assert worth(second.observations, APP, 3600 * S) is Visibility.MISSING, "its own monitor runs"
    later_ns = 606 * S
    assert should_leave(second, worth(second.observations, OTHER, later_ns), later_ns)


def test_readable_metadata_are_better_than_none_and_one_server_says_one_thing() -> None:
    empty = told(watching(APP), StatusRead(at(1), Role.SOURCE, ()))
    assert worth(empty.observations, OTHER, 10**5 * S) is Visibility.EMPTY
    assert worth(empty.observations, ELSEWHERE, 2 * S) is Visibility.UNTRIED
    blind = told(watching(ELSEWHERE, 5, since=leave(empty, at(5))), absent(6))
    assert should_leave(blind, worth(blind.observations, APP, 10 * S), 10 * S)


def test_a_deployment_on_another_server_is_looked_for_every_ten_minutes() -> None:
    """Both servers were empty; then a deployment was made of the one that is not watched."""
    first = leave(told(watching(APP), StatusRead(at(1), Role.SOURCE, ())), at(5))
    second = told(watching(ELSEWHERE, 6, since=first), StatusRead(at(7), Role.SOURCE, ()))
    for second_s, expected in ((60, False), (606, True)):
        offer = worth(second.observations, APP, second_s * S)
        assert should_leave(second, offer, second_s * S) is expected


def test_writer_and_reader_endpoint_are_one_cluster() -> None:
    writer = Parameters("app", "a.cluster-c0abc.eu-west-1.rds.amazonaws.com", 5432, "app")
    reader = writer._replace(host="a.cluster-ro-c0abc.eu-west-1.rds.amazonaws.com")
    assert writer.is_beside(reader)
    assert not writer.is_beside(reader._replace(port=5433))
    assert not writer.is_beside(reader._replace(host="b.cluster-ro-c0abc.eu-west-1.rds.amazonaws.com"))


def test_a_server_that_is_down_is_no_reason_to_try_another_login() -> None:
    silent = told(watching(APP), ProbeFailed(at(LOCKED_OUT_S), Role.SOURCE, "connection refused"))
    now_ns = int((LOCKED_OUT_S + BLIND_S) * S)
    assert not should_leave(silent, worth(silent.observations, OTHER, now_ns), now_ns)
    assert should_leave(silent, worth(silent.observations, ELSEWHERE, now_ns), now_ns)


def test_another_password_of_the_same_name_is_tried_a_few_times() -> None:
    snapshot = told(watching(APP), refused(0.5))
    for number in range(1, SAME_NAME_TRIES):
        assert worth(snapshot.observations, APP, number * S) is Visibility.UNTRIED
        snapshot = told(watching(APP, number, since=snapshot), refused(number + 0.5))
    assert worth(snapshot.observations, APP, 20 * S) is Visibility.REFUSED
    assert worth(snapshot.observations, APP, 700 * S) is Visibility.UNTRIED


def test_who_takes_over_a_deployment_is_who_can_see_it() -> None:
    seen = told(watching(APP), StatusRead(at(1), Role.SOURCE, (ROW,)))
    assert worth(seen.observations, APP, 10**6 * S) is Visibility.SEEN
    assert worth(seen.observations, OTHER, 2 * S) < Visibility.SEEN
    assert sight_of(watching(APP, 3, since=seen)) is Visibility.SEEN
    assert sight_of(watching(OTHER, 3, since=seen)) is Visibility.UNTRIED


def test_the_number_of_observations_is_bounded_and_causes_no_restart() -> None:
    snapshot, names = Snapshot("1"), [APP._replace(database=f"d{n}") for n in range(OBSERVATIONS + 3)]
    for number, parameters in enumerate(names):
        snapshot = told(watching(parameters, number, since=snapshot), absent(number))
    assert len(snapshot.observations) == OBSERVATIONS
    assert names[0] not in [observation.parameters for observation in snapshot.observations]
    assert worth(snapshot.observations, names[0], 100 * S) is Visibility.MISSING
    assert worth(snapshot.observations, names[0], 700 * S) is Visibility.UNTRIED


def test_texts_say_whose_and_what() -> None:
    assert str(APP) == f"app@{HOST}:5432/app"
    assert str(APP._replace(host="/tmp")) == "app@local socket:5432/app"
    assert all(visibility.text for visibility in Visibility)
    assert Observation(APP, Visibility.SEEN, 1).visibility not in BLIND
