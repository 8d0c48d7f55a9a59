"""The hosts of each side, and the green counterpart of each blue endpoint."""

from __future__ import annotations

import pytest

from bgpool.core.events import Resolved, StatusRow
from bgpool.core.inventory import has_moved
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.core.topology import correspondence, hosts_from
from tests.core.test_machine import at

ZONE = "us-east-1.rds.amazonaws.com"


def instance(name: str) -> str:
    return f"{name}.c0.{ZONE}"


def cluster(name: str, kind: str = "cluster-") -> str:
    return f"{name}.{kind}c0.{ZONE}"


def side(role: Role, *names: str) -> list[Host]:
    return [Host(name, 5432, role) for name in names]


def test_a_writer_endpoint_brings_its_reader_endpoint_and_its_servers_along() -> None:
    rows = [
        StatusRow(instance("db-2"), 5432, Role.SOURCE.value, "AVAILABLE"),
        StatusRow(cluster("db"), 5432, Role.SOURCE.value, "AVAILABLE"),
        StatusRow(cluster("etl", "cluster-custom-"), 5432, Role.SOURCE.value, "AVAILABLE"),
        StatusRow(cluster("db-old1"), 5432, Role.SOURCE.value, "AVAILABLE"),
        StatusRow(cluster("db-green-abc123"), 5432, Role.TARGET.value, "AVAILABLE"),
    ]
    found = hosts_from(rows, ["db-2", "db-1"], Role.SOURCE)
    assert [host.name for host in found] == [
        cluster("db"),
        cluster("db", "cluster-ro-"),
        instance("db-2"),
        instance("db-1"),
        cluster("etl", "cluster-custom-"),
    ]


def test_cluster_reader_custom_and_instance_endpoints_find_their_counterparts() -> None:
    blue = side(
        Role.SOURCE,
        cluster("db"),
        cluster("db", "cluster-ro-"),
        instance("db-1"),
        instance("db-2"),
        instance("db-3"),
        cluster("etl", "cluster-custom-"),
    )
    # Green failed over at some time: its writer is the twin of a blue reader.
    green = side(
        Role.TARGET,
        cluster("db-green-aaaaaa"),
        cluster("db-green-aaaaaa", "cluster-ro-"),
        instance("db-2-green-bbbbbb"),
        instance("db-1-green-cccccc"),
        instance("db-3-green-dddddd"),
        cluster("etl-green-eeeeee", "cluster-custom-"),
    )
    assert dict(correspondence(blue, green)) == {
        cluster("db"): cluster("db-green-aaaaaa"),
        cluster("db", "cluster-ro-"): cluster("db-green-aaaaaa", "cluster-ro-"),
        instance("db-1"): instance("db-2-green-bbbbbb"),
        instance("db-2"): instance("db-1-green-cccccc"),
        instance("db-3"): instance("db-3-green-dddddd"),
        cluster("etl", "cluster-custom-"): cluster("etl-green-eeeeee", "cluster-custom-"),
    }


@pytest.mark.parametrize(
    ("green_readers", "expected"),
    [
        ([], ["w", "w", "w"]),
        (["db-2-green-aaaaaa"], ["db-2-green-aaaaaa"] * 3),
        (["db-8-green-aaaaaa", "db-9-green-aaaaaa"], ["db-8-green-aaaaaa", "db-9-green-aaaaaa", "db-8-green-aaaaaa"]),
        (["db-3-green-aaaaaa", "db-9-green-aaaaaa"], ["db-3-green-aaaaaa", "db-3-green-aaaaaa", "db-9-green-aaaaaa"]),
    ],
    ids=["none", "one", "two others", "one of the same name"],
)
def test_unequal_numbers_of_readers(green_readers: list[str], expected: list[str]) -> None:
    readers = ["db-2", "db-3", "db-4"]
    blue = side(Role.SOURCE, instance("db-1"), *map(instance, readers))
    green = side(Role.TARGET, instance("db-1-green-zzzzzz"), *map(instance, green_readers))
    twins = dict(correspondence(blue, green))
    assert [twins[instance(name)] for name in readers] == [
        instance("db-1-green-zzzzzz" if name == "w" else name) for name in expected
    ]


def test_no_host_takes_the_name_of_a_reader_without_a_counterpart() -> None:
    snapshot = Snapshot(
        "1",
        Phase.IN_PROGRESS,
        hosts=(
            Host(instance("db-1"), 5432, Role.SOURCE, ("10.0.0.1",)),
            Host(instance("db-2"), 5432, Role.SOURCE, ("10.0.0.2",)),
        ),
    )

    def moved(first: tuple[str, ...], second: tuple[str, ...] | None) -> bool:
        found = {instance("db-1"): first} | ({} if second is None else {instance("db-2"): second})
        return has_moved(snapshot, Resolved(at(1), found))

    assert moved(("10.0.0.3",), ("10.0.0.4",))
    assert moved(("10.0.0.3",), ())
    assert not moved(("10.0.0.3",), None), "a look-up that failed says nothing"
    assert not moved(("10.0.0.3",), ("10.0.0.2",))
    assert not moved((), ()), "no name at all is an outage of DNS"


@pytest.mark.parametrize("order", [1, -1])
def test_without_a_cluster_the_base_name_tells_the_primary_from_its_replicas(order: int) -> None:
    blue = side(Role.SOURCE, *[instance("shop"), instance("reports")][::order])
    green = side(Role.TARGET, instance("shop-green-a1b2c3"), instance("reports-green-d4e5f6"))
    assert dict(correspondence(blue, green)) == {
        instance("shop"): instance("shop-green-a1b2c3"),
        instance("reports"): instance("reports-green-d4e5f6"),
    }


def test_an_instance_without_a_namesake_is_matched_by_position() -> None:
    blue, green = side(Role.SOURCE, instance("shop")), side(Role.TARGET, instance("store-green-a1b2c3"))
    assert correspondence(blue, green) == ((instance("shop"), instance("store-green-a1b2c3")),)
