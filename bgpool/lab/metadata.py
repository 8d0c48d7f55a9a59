"""RDS-shaped metadata of a Blue/Green Deployment, different on each server and changeable on a replica.

The function or view that a monitor queries reads a file in the server's own data directory. Tables would be replicated
from blue to green, and could not be changed on a replica, or on a server that does not answer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bgpool.lab.server import Flavour, Server

__all__ = [
    "AVAILABLE", "INITIATED", "IN_PROGRESS", "POST", "COMPLETED", "SOURCE", "TARGET",
    "Flavour", "ReplicaRow", "TopologyRow", "publish", "publish_broken", "publish_replicas", "withdraw",
]  # fmt: skip

TOPOLOGY_FILE: Final = "bgpool_topology.json"
REPLICAS_FILE: Final = "bgpool_replicas.json"
"""The names in the servers' own functions."""

AVAILABLE = "AVAILABLE"
INITIATED = "SWITCHOVER_INITIATED"
IN_PROGRESS = "SWITCHOVER_IN_PROGRESS"
POST = "SWITCHOVER_IN_POST_PROCESSING"
COMPLETED = "SWITCHOVER_COMPLETED"

SOURCE = "BLUE_GREEN_DEPLOYMENT_SOURCE"
TARGET = "BLUE_GREEN_DEPLOYMENT_TARGET"


@dataclass(frozen=True, slots=True)
class TopologyRow:
    """One row of the status."""

    id: str
    endpoint: str
    port: int
    role: str
    status: str
    version: str = "1.0"


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One instance of an Aurora cluster."""

    server_id: str
    is_writer: bool = True
    lag_ms: float = 0.0
    age_s: float = 0.0


def publish(server: Server, rows: Iterable[TopologyRow]) -> None:
    """Make *server*, running or not, show *rows* from now on; no rows is an empty table."""
    server.write_file(TOPOLOGY_FILE, json.dumps([dataclasses.asdict(row) for row in rows]))


def publish_broken(server: Server) -> None:
    """Make the status query of *server* fail (SQLSTATE 22P02, MySQL 4038) until the next `publish`."""
    server.write_file(TOPOLOGY_FILE, "not json")


def publish_replicas(server: Server, rows: Iterable[ReplicaRow]) -> None:
    """Make the topology of *server*, such as ``aurora_replica_status()``, show *rows* from now on."""
    shown = [
        {
            "server_id": row.server_id,
            "session_id": "MASTER_SESSION_ID" if row.is_writer else f"session-{row.server_id}",
            "lag_ms": row.lag_ms,
            "age_s": row.age_s,
        }
        for row in rows
    ]
    server.write_file(REPLICAS_FILE, json.dumps(shown))


def withdraw(server: Server) -> None:
    """Make *server* show nothing, as before a deployment was created."""
    for name in (TOPOLOGY_FILE, REPLICAS_FILE):
        (server.data_dir / name).unlink(missing_ok=True)
