"""Checks of blue's server and of green's, each over one connection."""

from __future__ import annotations

from typing import Any, Final

from bgpool.core.endpoints import Kind, parse_endpoint
from bgpool.core.engine import Engine
from bgpool.core.phase import PHASE_OF_STATUS, SWITCHING, Phase, Role
from bgpool.core.topology import counting_row
from bgpool.doctor import certificates, minimums
from bgpool.doctor.findings import Checks, Verdict, failed, not_checked, ok, warning
from bgpool.doctor.server import QueryFailed, Server
from bgpool.doctor.sizes import Room, judge_room
from bgpool.dsn import names_are_proved
from bgpool.monitor.dialects.postgres import ROLES_SETTING

__all__ = ["server_checks"]

server_checks: Final[Checks[Server]] = Checks()

_POSTGRES: Final = frozenset({minimums.AURORA_POSTGRES, minimums.RDS_POSTGRES})
_AURORA: Final = frozenset({minimums.AURORA_POSTGRES, minimums.AURORA_MYSQL})
#: The source of the status, as written in SQL.
_SOURCES: Final = {
    minimums.AURORA_POSTGRES: "pg_catalog.get_blue_green_fast_switchover_metadata()",
    minimums.RDS_POSTGRES: "rds_tools.show_topology()",
    minimums.AURORA_MYSQL: "mysql.rds_topology",
    minimums.RDS_MYSQL: "mysql.rds_topology",
}
_CREATE: Final = "as an administrator, in database {database}: CREATE EXTENSION rds_tools;"
_GRANT_POSTGRES: Final = (
    "as an administrator, in database {database}: GRANT USAGE ON SCHEMA rds_tools TO {account}; "
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rds_tools TO {account};"
)
_GRANT_MYSQL: Final = "as an administrator: GRANT SELECT ON mysql.rds_topology TO {account};"
#: MySQL: no such table; the table, or its columns, may not be read.
_NO_TABLE, _DENIED = "1146", frozenset({"1142", "1143", "1044", "1227"})

_EXTENSION: Final = """
    SELECT (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'rds_tools'),
           (SELECT default_version FROM pg_catalog.pg_available_extensions WHERE name = 'rds_tools'),
           EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                   WHERE n.nspname = 'rds_tools' AND p.proname = 'show_topology')
"""
_RIGHTS: Final = """
    SELECT has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE (n.nspname, p.proname) IN (('rds_tools', 'show_topology'),
                                     ('pg_catalog', 'get_blue_green_fast_switchover_metadata'))
"""
_READ_ONLY: Final = {
    # The doctor's session is read-only in any case. So use the default that it would have had, unless that is from a
    # setting of the role or the database.
    Engine.POSTGRESQL: "SELECT pg_catalog.pg_is_in_recovery() OR"
    f" (reset_val::bool AND {ROLES_SETTING.format(user='session_user', database='current_database()')} IS NULL)"
    " FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'",
    Engine.MYSQL: "SELECT @@global.read_only OR @@global.innodb_read_only",
}
_ROOM_POSTGRES: Final = """
    SELECT current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
           + coalesce(nullif(current_setting('reserved_connections', true), '')::int, 0)
           + coalesce(nullif(current_setting('rds.rds_superuser_reserved_connections', true), '')::int, 0),
           least((SELECT nullif(rolconnlimit, -1) FROM pg_catalog.pg_roles WHERE rolname = current_user),
                 (SELECT nullif(datconnlimit, -1) FROM pg_catalog.pg_database WHERE datname = current_database())),
           (SELECT sum(numbackends) FROM pg_catalog.pg_stat_database)::int
"""


@server_checks.check("login", "Does the server let the monitor in?")
def _login(server: Server) -> Verdict:
    where = f"{server.host or 'the local socket'}:{server.port}"
    user = server.case.config.params.get("user") or server.case.dsn.user
    if server.failure:
        remedy = (
            f"have {where} let {user} in from this host: route, security group, password; the monitor asks both sides"
        )
        return failed(f"{user} at {where}: {server.failure}", "; ".join(filter(None, (remedy, server.remedy))))
    if server.cache_warning:
        return failed(*f"{user} at {where}: {server.cache_warning}".rsplit("; ", 1))
    return ok(f"{user} at {where}, in a read-only session of the doctor's own")


@server_checks.check("engine", "Is it RDS or Aurora, and which of the engines?")
def _engine(server: Server) -> Verdict:
    who = server.identity
    if not who.doubt:
        return ok(f"{who.product}, {who.runs}")
    return warning(
        f"not {who.product.partition(' ')[0]}: {who.doubt}; treated as {who.product}, {who.runs}",
        "fine for a rehearsal in the lab; blue/green deployments are there on RDS and Aurora alone",
    )


@server_checks.check("version", "Is the version one that tells of deployments?")
def _version(server: Server) -> Verdict:
    who = server.identity
    least = minimums.minimum(who.product)
    enough = minimums.version_will_do(who.product, who.version)
    if enough is None:
        return not_checked(f"{who.version!r} is no version that is known; {who.product} needs {least}")
    if enough:
        return ok(f"{who.product} {who.version}; {least}")
    return failed(
        f"{who.product} {who.version}; {least} is needed, on green above all",
        "upgrade, or create the deployment with a newer engine version for green",
    )


@server_checks.check("extension", "Is the extension that the metadata come from there?")
def _extension(server: Server) -> Verdict:
    who = server.identity
    if who.product != minimums.RDS_POSTGRES:
        return ok(f"{who.product} needs none")
    installed, available, function = server.query(_EXTENSION)[0]
    create = _CREATE.format(database=who.database)
    if installed is None:
        if function:
            return warning("rds_tools.show_topology is there, but no extension rds_tools", f"on RDS, {create}")
        offer = f"it could be ({available})" if available else "the server does not offer it: see version"
        return failed(f"rds_tools is not installed in database {who.database}; {offer}", create)
    if minimums.extension_will_do(installed) and function:
        return ok(f"rds_tools {installed} in database {who.database}")
    return failed(
        f"rds_tools {installed} in database {who.database}; 1.7 or above is needed",
        "as an administrator: ALTER EXTENSION rds_tools UPDATE;"
        + ("" if minimums.extension_will_do(available or "") else " after an upgrade of the engine, see version"),
    )


@server_checks.check("grants", "May the monitor's user read the metadata?")
def _grants(server: Server) -> Verdict:
    who = server.identity
    source = _SOURCES[who.product]
    if who.product in _POSTGRES:
        found = [usable for (usable,) in server.query(_RIGHTS)]
        if not found:
            return not_checked(f"there is no {source}, see {'version' if who.product in _AURORA else 'extension'}")
        if any(found):
            return ok(f"{who.account} may call {source}")
        grant = _GRANT_POSTGRES.format(account=who.account, database=who.database)
        if who.product in _AURORA:
            grant = f"as an administrator: GRANT EXECUTE ON FUNCTION {source[:-2]} TO {who.account};"
        return failed(f"{who.account} may not call {source}", _on_both(grant, server.role))
    try:
        server.query("SELECT 1 FROM mysql.rds_topology LIMIT 1")
    except QueryFailed as error:
        if error.code == _NO_TABLE:
            return not_checked(f"there is no {source}, see metadata")
        if error.code not in _DENIED:
            raise
        grant = _GRANT_MYSQL.format(account=who.account)
        return failed(f"{who.account} may not read {source}, or there is none", _on_both(grant, server.role))
    return ok(f"{who.account} may read {source}")


@server_checks.check("metadata", "Does the server tell of a deployment?")
def _metadata(server: Server) -> Verdict:
    source, answer = _SOURCES[server.identity.product], server.answer
    if answer.missing:
        text, _, remedy = answer.missing.partition("pools work as plain pools: ")[2].partition("; ")
        return failed(text, remedy)
    if answer.failure:
        return failed(f"{source} fails: {answer.failure}", "see the server's log; a monitor takes this for no news")
    if not answer.rows:
        return failed(
            f"{source} can be read and is empty: no deployment",
            "create the deployment; just after that, its rows may be a while in coming",
        )
    rows = {role: counting_row(answer.rows, role) for role in Role}
    text = f"{source}: " + ", ".join(
        f"{role.colour} {row.status} ({row.endpoint})" for role, row in rows.items() if row is not None
    )
    absent = [role.colour for role, row in rows.items() if row is None]
    if absent:
        return failed(
            f"{text}; no rows of {' and '.join(absent)}", "check whether the deployment is still being created"
        )
    unknown = sorted({row.version for row in answer.rows} - {"1.0"})
    if unknown:
        return warning(f"{text}; rows have version {', '.join(unknown)}, read as 1.0", "see for a newer bgpool")
    return ok(text)


@server_checks.check("status", "Is the deployment ready to be switched over?")
def _status(server: Server) -> Verdict:
    rows = [row for role in Role if (row := counting_row(server.answer.rows or (), role)) is not None]
    if not rows:
        return not_checked("there is no deployment, see metadata")
    words = {row.status.strip().upper() for row in rows}
    phases = {PHASE_OF_STATUS.get(word) for word in words}
    if phases == {Phase.CREATED}:
        return ok("AVAILABLE")
    text = ", ".join(sorted(words))
    if None in phases:
        return warning(f"{text}: not a status that is known", "see the console; a monitor takes this for no news")
    if phases & SWITCHING:
        return warning(f"{text}: a switchover is under way", "wait for its end before another one")
    return warning(f"{text}: the switchover is over", "nothing for this one; delete the deployment when you like")


@server_checks.check("deployment", "Is it one of the supported kinds?")
def _deployment(server: Server) -> Verdict:
    who, name = server.identity, parse_endpoint(server.case.real_name(server.host))
    if "Multi-AZ DB cluster" in server.answer.missing:
        return failed(server.answer.missing.partition("pools work as plain pools: ")[2], "use a DB instance or Aurora")
    if name is None:
        return ok(f"{who.product}; {server.host or 'the host'} is no endpoint's name, which could tell more")
    if name.kind is Kind.GLOBAL:
        return warning(
            f"{name.host} is the endpoint of an Aurora Global Database: AWS supports Blue/Green Deployments there, "
            "bgpool has not been tried with one",
            "try a switchover in a test environment first; connect to the primary cluster's endpoint, which is blue's",
        )
    if name.kind in (Kind.WRITER, Kind.READER, Kind.CUSTOM) and who.product not in _AURORA:
        return failed(
            f"{name.host} is a cluster's and this is not Aurora: a Multi-AZ DB cluster, which is not supported",
            "use a DB instance (Multi-AZ with one standby is fine) or Aurora",
        )
    if name.kind is Kind.PROXY:
        return failed(f"{name.host} is an RDS Proxy's; servers have to be reached directly", "connect to the endpoint")
    kind = "cluster" if name.kind is not Kind.INSTANCE else "instance"
    return ok(f"{who.product}, {kind} endpoint; the name does not tell whether it is in a global database")


@server_checks.check("writes", "Does blue take writes, and green none?")
def _writes(server: Server) -> Verdict:
    # Like a monitor: by the server's own state, and by the catalogue's settings of the application's role.
    read_only = bool(server.query(_READ_ONLY[server.case.dsn.engine])[0][0])
    by_role, user = server.answer.role_read_only, server.case.config.app_user
    if server.role is Role.SOURCE:
        if read_only:
            remedy = "fine if this DSN is for a reader; else a switchover may have passed"
            return warning("blue takes no writes", remedy)
        if by_role:
            return warning(
                f"blue takes no writes from {user}, by a setting of that role or its database; what green lets that "
                "role do is no evidence then",
                "fine for a role that only reads; else ALTER ROLE … RESET default_transaction_read_only",
            )
        return ok("blue takes writes")
    if read_only or by_role:
        what = "read-only" if read_only else f"read-only for {user}, by a setting of that role or its database"
        return ok(f"green is {what}; its taking writes will end the hold, whatever the metadata say")
    return warning(
        "green takes writes already, so that its taking some is no evidence for the end of a switchover",
        "make green read-only (default_transaction_read_only, read_only); metadata and DNS are evidence, too",
    )


@server_checks.check("connections", "Is there room for all pools?")
def _connections(server: Server) -> Verdict:
    most, reserved, of_user, in_use = _room(server)
    case = server.case
    ours = sum(row.usage.in_use + row.usage.idle for row in case.rows) if server.role is Role.SOURCE else 0
    room = Room(int(most), int(reserved), None if of_user is None else int(of_user), int(in_use))
    verdict = judge_room(room, workers=case.processes, max_size=case.max_size, ours=ours)
    return Verdict(verdict.result, f"{verdict.text}; processes: {case.says_processes}", verdict.remedy)


@server_checks.check("certificate", "Whose name is in the certificate?")
def _certificate(server: Server) -> Verdict:
    if not names_are_proved(server.case.config.params):
        return not_checked("no name is compared, see tls")
    connection = server.connection
    names = certificates.names(connection, server.case.config.params, server.case.timeout_s)
    if names is None:
        return not_checked("the certificate was found good, but its names are not told")
    return ok(f"compared with {server.case.real_name(server.host)}; it is for {', '.join(names)}")


def _room(server: Server) -> tuple[Any, ...]:
    """Return max_connections, reserved ones, the user's own limit or None, and the current number."""
    if server.case.dsn.engine is Engine.POSTGRESQL:
        return server.query(_ROOM_POSTGRES)[0]
    most, of_user = server.query("SELECT @@global.max_connections, @@session.max_user_connections")[0]
    ((_, in_use),) = server.query("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
    # Connections for administrators are in addition to max_connections. 0 means no limit.
    return most, 0, of_user or None, in_use


def _on_both(statements: str, role: Role) -> str:
    """Return a hint: grants from before the deployment reach green; later ones must be repeated there."""
    before = ", before the deployment is created or on green as well" if role is Role.SOURCE else ", on green"
    return statements.replace("as an administrator", f"as an administrator{before}", 1)
