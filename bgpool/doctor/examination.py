"""The order of an examination: local checks, then blue, then all servers that blue's metadata name, concurrently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bgpool.core.phase import Role
from bgpool.core.snapshot import Host
from bgpool.core.topology import hosts_from
from bgpool.doctor import endpoints
from bgpool.doctor.bounded import side_by_side
from bgpool.doctor.case import Case
from bgpool.doctor.endpoints import Endpoint, endpoints_checks
from bgpool.doctor.findings import Checks, EarlyVerdict, Finding, Result, Verdict, failed, not_checked, ok
from bgpool.doctor.fleet_checks import of_fleet
from bgpool.doctor.host_checks import host_checks
from bgpool.doctor.kernel_checks import kernel_checks
from bgpool.doctor.parameter_checks import parameter_checks
from bgpool.doctor.receipts_checks import of_application
from bgpool.doctor.replication import Replication
from bgpool.doctor.replication_checks import checks_of
from bgpool.doctor.server import Server
from bgpool.doctor.server_checks import server_checks

__all__ = ["examine"]


#: The number of queries without an answer after which a side is given up; the first one closes its connection.
_UNANSWERED: Final = 3


@dataclass(slots=True)
class _Deployment:
    """The deployment in blue's metadata.

    Attributes:
        green: Green's server; None if the metadata name none.
        endpoints: The endpoints of both roles, the counting one first; blue's include the DSN's own.
    """

    case: Case
    blue: Server
    green: Server | None = None
    endpoints: dict[Role, list[Endpoint]] = field(default_factory=dict)

    def names_of(self, role: Role) -> list[str]:
        return [endpoint.name for endpoint in self.endpoints.get(role, ())]


deployment_checks: Final[Checks[_Deployment]] = Checks()


def examine(case: Case) -> list[Finding]:
    """Make all checks of *case*. The case's time limit applies to every connect and every query.

    Sessions are read-only, and nothing is created in the run directory.
    """
    findings = [
        *parameter_checks.run(case, "parameters"),
        *host_checks.run(case, "this host"),
        *kernel_checks.run(case, "this host"),
        *_of_fleet(case),
    ]
    blue = Server(case, Role.SOURCE, case.config.host, case.config.port)
    blue.open()
    deployment = _Deployment(case, blue)
    try:
        _find_green(deployment)
        _visit_all(deployment)
        findings += deployment_checks.run(deployment, "deployment")
        servers = [server for server in (blue, deployment.green) if server is not None]
        asked = side_by_side(
            [partial(server_checks.run, server, server.role.colour) for server in servers], _UNANSWERED * case.timeout_s
        )
        found = side_by_side(
            [partial(of_application, case, server) for server in servers], (_UNANSWERED + 1) * case.timeout_s
        )
        # Last, because a large catalogue may exceed the time limit.
        replication = Replication(blue, deployment.green)
        replicated = checks_of(replication).run(replication, "replication")
    finally:
        for server in (blue, deployment.green):
            if server is not None:
                server.close()
    for server, answers, receipts in zip(servers, asked, found, strict=True):
        findings += answers if answers is not None else [_late(server.role.colour)]
        findings += receipts or []
        findings += endpoints_checks.run(deployment.endpoints[server.role], server.role.colour)
    return findings + replicated


@deployment_checks.check("green", "Is green known?")
def _green(deployment: _Deployment) -> Verdict:
    if deployment.green is not None:
        return ok(", ".join(deployment.names_of(Role.TARGET)))
    why = "blue cannot be queried" if deployment.blue.failure else "blue's metadata name no green"
    return not_checked(f"{why}: green was not checked")


@deployment_checks.check("part", "Does this DSN take part in the switchover?")
def _part(deployment: _Deployment) -> Verdict:
    case, endpoint = deployment.case, deployment.case.alias.endpoint
    named = _named(deployment, Role.SOURCE)
    if not named:
        return not_checked("no metadata tell who takes part")
    if endpoint in named:
        return ok(f"{endpoint} is blue's; blue has {', '.join(named)}")
    if endpoint in deployment.names_of(Role.TARGET):
        return failed(f"{endpoint} is green's, and refused once the switchover is over", f"connect to {named[0]}")
    shown = endpoint or case.dsn.endpoint or "the local socket"
    return failed(
        f"{shown} is neither blue's nor green's; blue has {', '.join(named)}",
        f"connect to one of blue's, or add endpoint={named[0]} to the DSN if the host stands for that",
    )


def _find_green(deployment: _Deployment) -> None:
    case, blue = deployment.case, deployment.blue
    named = _hosts(blue, Role.TARGET)
    if named:
        deployment.green = Server(case, Role.TARGET, named[0].name, named[0].port)
        deployment.green.open()
    entrance = [(case.dsn.host, case.dsn.port)]
    sides = {Role.SOURCE: [*_places(_hosts(blue, Role.SOURCE)), *entrance]}
    if deployment.green is not None:
        # Only green itself knows its topology.
        sides[Role.TARGET] = _places(_hosts(deployment.green, Role.TARGET)) or _places(named)
    deployment.endpoints = {role: endpoints.unique(places) for role, places in sides.items()}


def _visit_all(deployment: _Deployment) -> None:
    everybody = [endpoint for side in deployment.endpoints.values() for endpoint in side]
    endpoints.look_up(deployment.case, everybody)
    endpoints.visit(deployment.case, everybody)


def _named(deployment: _Deployment, role: Role) -> list[str]:
    return [host.name for host in _hosts(deployment.blue, role)]


def _hosts(server: Server, role: Role) -> tuple[Host, ...]:
    """Return the endpoints of *role* in the metadata of *server*, of either role; none if it reports none."""
    try:
        answer = server.answer
    except EarlyVerdict:
        return ()
    return hosts_from(answer.rows or (), answer.servers if server.role is role else (), role)


def _places(hosts: Sequence[Host]) -> list[tuple[str, int]]:
    return [(host.name, host.port) for host in hosts]


def _of_fleet(case: Case) -> list[Finding]:
    # The look-up of the bus's name, or a callable for its password or key, may hang.
    (found,) = side_by_side([partial(of_fleet, case)], (_UNANSWERED + 1) * case.timeout_s)
    return found if found is not None else [_late("fleet")]


def _late(where: str) -> Finding:
    return Finding(
        where,
        "answers",
        "Does the server answer?",
        Result.FAILED,
        "it does not answer in time",
        "see its log",
    )
