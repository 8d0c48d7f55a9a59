"""Checks of what green will lack when it takes over, made on both servers' catalogues.

Physical replication transfers a whole server, logical replication only the rows of tables. PostgreSQL's green is a
logical replica after a major version upgrade, and always on Aurora; MySQL's is always one. All queries concern the
DSN's database, and catalogues that every user may read.
"""

from __future__ import annotations

import importlib.metadata
from typing import Final

from bgpool.core.engine import Engine
from bgpool.doctor import minimums
from bgpool.doctor.findings import Checks, EarlyVerdict, Verdict, failed, not_checked, ok, warning
from bgpool.doctor.replication import OWN, Kind, Replication
from bgpool.doctor.schemas import compare, first_few

__all__ = ["checks_of", "mysql_checks", "postgres_checks"]

postgres_checks: Final[Checks[Replication]] = Checks()
mysql_checks: Final[Checks[Replication]] = Checks()

#: The maximum of large objects to count.
_MANY: Final = 10_000

#: Tables whose rows have no identity. A partition counts for the table at the root. A deferrable primary key does not
#: identify rows. The last column: publications for which UPDATE or DELETE therefore fails.
_KEYLESS: Final = f"""
    WITH published AS MATERIALIZED (
        SELECT t.schemaname, t.tablename, p.pubname
        FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
        WHERE p.pubupdate OR p.pubdelete
    ), keyless AS (
        SELECT c.oid, c.relispartition
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {OWN}
        AND c.relreplident <> 'f' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_index i
            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
            AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
    ), line AS (
        SELECT k.oid, k.oid AS above FROM keyless k
        UNION
        SELECT k.oid, a.relid FROM keyless k, pg_catalog.pg_partition_ancestors(k.oid) a WHERE k.relispartition
    )
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname),
           pg_catalog.array_agg(DISTINCT p.pubname::text) FILTER (WHERE p.pubname IS NOT NULL)
    FROM line l
    JOIN pg_catalog.pg_class r ON r.oid = l.above
    JOIN pg_catalog.pg_namespace s ON s.oid = r.relnamespace
    LEFT JOIN published p ON (p.schemaname, p.tablename) = (s.nspname, r.relname)
    JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(l.oid)::pg_catalog.oid, l.oid)
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    GROUP BY n.nspname, c.relname ORDER BY 1
"""
_UNLOGGED: Final = f"""
    SELECT DISTINCT pg_catalog.format('%I.%I', m.nspname, r.relname)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_class r ON r.oid = coalesce(pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid, c.oid)
    JOIN pg_catalog.pg_namespace m ON m.oid = r.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND {OWN} ORDER BY 1
"""
_VIEWS: Final = f"""
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'm' AND {OWN} ORDER BY 1
"""
_LARGE_OBJECTS: Final = f"SELECT count(*) FROM (SELECT FROM pg_catalog.pg_largeobject_metadata LIMIT {_MANY + 1}) AS o"
#: Without the temporary slots with which a subscription copies a table.
_SLOTS: Final = """
    SELECT slot_name::text, 'database ' || database::text || CASE WHEN active THEN ', in use' ELSE '' END
    FROM pg_catalog.pg_replication_slots
    WHERE slot_type = 'logical' AND NOT temporary AND slot_name !~ '^pg_[0-9]+_sync_' ORDER BY 1
"""
#: Of all databases of green: every slot belongs to one of them.
_FED_BY: Final = "SELECT subslotname::text FROM pg_catalog.pg_subscription WHERE subslotname IS NOT NULL"
_SUBSCRIPTIONS: Final = """
    SELECT s.subname::text, s.subenabled, s.subslotname::text FROM pg_catalog.pg_subscription s
    JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database() ORDER BY 1
"""
_READERS: Final = """
    SELECT slot_name::text, active,
           (pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), confirmed_flush_lsn) / 1048576)::float8
    FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical'
"""
#: A partition may be received through the table above it.
_NOT_RECEIVED: Final = f"""
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {OWN}
    AND c.oid NOT IN (SELECT srrelid FROM pg_catalog.pg_subscription_rel)
    AND NOT (c.relispartition AND EXISTS (
        SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a
        JOIN pg_catalog.pg_subscription_rel s ON s.srrelid = a.relid))
    ORDER BY 1
"""
_EXTENSIONS: Final = """
    SELECT e.extname::text, e.extversion, coalesce(a.default_version, e.extversion)
    FROM pg_catalog.pg_extension e LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = e.extname ORDER BY 1
"""

_MYSQL_OWN: Final = (
    "t.table_type = 'BASE TABLE' AND t.table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')"
)
_MYSQL_TABLES: Final = f"SELECT COUNT(*) FROM information_schema.tables t WHERE {_MYSQL_OWN}"
#: A unique key is sufficient if none of its columns may be NULL.
_MYSQL_KEYLESS: Final = f"""
    SELECT CONCAT(t.table_schema, '.', t.table_name) FROM information_schema.tables t
    LEFT JOIN (
        SELECT DISTINCT k.table_schema, k.table_name FROM (
            SELECT table_schema, table_name, index_name FROM information_schema.statistics
            WHERE non_unique = 0 GROUP BY table_schema, table_name, index_name HAVING SUM(nullable = 'YES') = 0
        ) AS k
    ) AS keyed ON keyed.table_schema = t.table_schema AND keyed.table_name = t.table_name
    WHERE {_MYSQL_OWN} AND keyed.table_name IS NULL ORDER BY 1
"""
_MYSQL_ENGINES: Final = f"""
    SELECT CONCAT(t.table_schema, '.', t.table_name, ' (', t.engine, ')') FROM information_schema.tables t
    JOIN information_schema.engines e ON e.engine = t.engine
    WHERE {_MYSQL_OWN} AND COALESCE(e.transactions, 'NO') <> 'YES' ORDER BY 1
"""

_RECEIPTS: Final = (
    "with receipts no server has to be asked: bg_receipts_table=bgpool_receipts, with a table that was created before "
    "the deployment"
)


def checks_of(replication: Replication) -> Checks[Replication]:
    """Return the checks of the servers' engine."""
    return mysql_checks if replication.engine is Engine.MYSQL else postgres_checks


@postgres_checks.check("kind", "Is green a physical replica, or a logical one?")
def _kind(replication: Replication) -> Verdict:
    blue, green = replication.blue, replication.green
    if green is None or replication.kind is Kind.UNKNOWN:
        return not_checked(f"{replication.unknown}; what follows says what holds for a logical one")
    versions = f"blue {blue.identity.runs}, green {green.identity.runs}"
    if replication.kind is Kind.PHYSICAL:
        return ok(f"a physical replica, which knows the outcome of a COMMIT ({versions})")
    text = f"a logical replica ({versions}), which does not know the outcome of a COMMIT that the switchover cuts"
    if table := blue.case.settings.bg_receipts_table:
        return ok(f"{text}; receipts in {table} decide it: see receipts")
    return warning(
        f"{text}; units of work ask old blue",
        f"leave old blue running for some minutes after the switchover: without its answer the COMMIT is "
        f"CommitOutcomeUnknown; {_RECEIPTS}",
    )


@postgres_checks.check("keys", "Has every table a primary key, or another replica identity?")
def _keys(replication: Replication) -> Verdict:
    found = replication.blue.query(_KEYLESS)
    where = replication.place
    if not found:
        return ok(f"every table of {where}")
    published = {name: publications for name, publications in found if publications}
    mend = "give each a primary key, on both sides where green is there, or ALTER TABLE … REPLICA IDENTITY FULL"
    if published:
        by = first_few(sorted({publication for all_of in published.values() for publication in all_of}))
        return failed(
            f"{_tables(len(published))} of {where} without a primary key or replica identity, published by {by}, so "
            f"that UPDATE and DELETE on blue fail there now (55000): {first_few([*published])}",
            f"{mend}; a table that is only ever inserted into may stay as it is",
        )
    names = first_few([name for name, _ in found])
    text = f"{_tables(len(found))} of {where} without a primary key or replica identity: {names}"
    if replication.kind is Kind.PHYSICAL:
        return ok(f"{text}; a physical replica needs none")
    return warning(
        f"{text}; {_if_logical(replication)}UPDATE and DELETE fail there, on blue, as soon as a publication has them",
        f"before the deployment is created, {mend}",
    )


@postgres_checks.check("unlogged", "Is every table's content replicated?")
def _unlogged(replication: Replication) -> Verdict:
    names = [name for (name,) in replication.blue.query(_UNLOGGED)]
    if not names:
        return ok(f"no unlogged table in {replication.place}")
    return warning(
        f"{_count(len(names), 'unlogged table')} in {replication.place}, empty on green: {first_few(names)}",
        "fill them again after the switchover; or, before the deployment is created, ALTER TABLE … SET LOGGED",
    )


@postgres_checks.check("large objects", "Are there large objects, which logical replication leaves out?")
def _large_objects(replication: Replication) -> Verdict:
    count = int(replication.blue.query(_LARGE_OBJECTS)[0][0])
    if not count:
        return ok(f"none in {replication.place}")
    text = f"{'over ' if count > _MANY else ''}{_count(min(count, _MANY), 'large object')} in {replication.place}"
    if replication.kind is Kind.PHYSICAL:
        return ok(f"{text}; a physical replica has them, too")
    return warning(
        f"{text}; {_if_logical(replication)}those made or changed since green was made are missing there or out of "
        "date (42704), while the rows that point to them are there",
        "have none made or changed while the deployment is there, or copy those; bytea columns are replicated",
    )


@postgres_checks.check("slots", "Do other programs read blue's changes, by a replication slot of their own?")
def _slots(replication: Replication) -> Verdict:
    slots = dict(replication.blue.query(_SLOTS))
    if replication.green is None or replication.green.failure:
        if not slots:
            return ok("no logical replication slot on blue")
        whose = "; which of them are the deployment's, only green can tell"
    else:
        green = replication.green
        for (name,) in [
            *green.query(_FED_BY),
            *green.query("SELECT slot_name::text FROM pg_catalog.pg_replication_slots"),
        ]:
            slots.pop(name, None)
        if not slots:
            return ok("none that green lacks")
        whose = " that green neither has nor reads"
    texts = [f"{name} ({says})" for name, says in slots.items()]
    return warning(
        f"{_count(len(slots), 'logical replication slot')} on blue{whose}: {first_few(texts)}",
        "after the switchover restart change capture on green, with a slot and, if need be, a snapshot of its "
        "own; drop the slots on old blue",
    )


@postgres_checks.check("materialized", "Are there materialized views, whose REFRESH logical replication leaves out?")
def _materialized(replication: Replication) -> Verdict:
    names = [name for (name,) in replication.blue.query(_VIEWS)]
    if not names:
        return ok(f"none in {replication.place}")
    text = f"{_count(len(names), 'materialized view')} in {replication.place}: {first_few(names)}"
    if replication.kind is Kind.PHYSICAL:
        return ok(f"{text}; a physical replica has them as they are")
    return warning(
        f"{text}; {_if_logical(replication)}green has them as they were when it was made",
        "REFRESH MATERIALIZED VIEW each of them after the switchover",
    )


@postgres_checks.check("schema", "Has green every table, column, sequence, view and enum that blue has?")
def _schema(replication: Replication) -> Verdict:
    if replication.kind is Kind.PHYSICAL:
        return ok("a physical replica's is blue's")
    blue, green = replication.things
    found = compare(blue, green)
    also = f"; also different: {first_few(found.other)}" if found.other else ""
    if found.missing:
        return failed(
            f"{len(found.missing)} missing on green in {replication.place}: {first_few(found.missing)}{also}",
            "make the same change on green: DDL is not replicated, and replication stops at the first row that needs "
            "it; for a new table see subscription, too",
        )
    if found.other:
        return warning(
            f"{replication.place} differs in {len(found.other)}: {first_few(found.other)}",
            "fine where it is meant; else make the same change on blue",
        )
    return ok(f"{len(blue)} tables, sequences, views and types of {replication.place} are the same on both sides")


@postgres_checks.check("subscription", "Does green receive every table, now?")
def _subscription(replication: Replication) -> Verdict:
    if replication.kind is Kind.PHYSICAL:
        return ok("a physical replica receives everything")
    green = replication.logical_green
    subscriptions = green.query(_SUBSCRIPTIONS)
    if not subscriptions:
        return not_checked(f"green shows no subscription of {replication.place}")
    if still := [name for name, enabled, _ in subscriptions if not enabled]:
        return failed(
            f"{first_few(still)} is disabled: green receives nothing and falls behind",
            "see green's log for the reason; when that is gone, ALTER SUBSCRIPTION … ENABLE; or create a new "
            "deployment",
        )
    readers = {slot: (active, behind_mb) for slot, active, behind_mb in replication.blue.query(_READERS)}
    fed = {slot: readers[slot] for _, _, slot in subscriptions if slot in readers}
    behind = max((behind_mb or 0.0 for _, behind_mb in fed.values()), default=0.0)
    if idle := [slot for slot, (active, _) in fed.items() if not active]:
        return failed(
            f"green does not read its slot on blue, {first_few(idle)}, and is {behind:.0f} MB behind",
            "see green's log for what stops it: as a rule a row for something that green lacks, see schema",
        )
    blue, _ = replication.things
    ignored = [name for (name,) in green.query(_NOT_RECEIVED) if name in blue]
    names = first_few([name for name, _, _ in subscriptions])
    if ignored:
        return failed(
            f"{names} leaves out {_tables(len(ignored))} that both sides have, so that rows written on blue do not "
            f"reach green: {first_few(ignored)}",
            "on green, as the subscription's owner: ALTER SUBSCRIPTION … REFRESH PUBLICATION; it copies the existing "
            "rows; or create a new deployment",
        )
    return ok(f"{names} receives every table of {replication.place}; {behind:.0f} MB behind")


@postgres_checks.check("extensions", "Are the same extensions on both sides, and are green's up to date?")
def _extensions(replication: Replication) -> Verdict:
    if replication.kind is Kind.PHYSICAL:
        return ok("a physical replica's are blue's")
    green = {name: (version, newest) for name, version, newest in replication.logical_green.query(_EXTENSIONS)}
    blue = {name: version for name, version, _ in replication.blue.query(_EXTENSIONS)}
    where = replication.place
    if missing := [f"{name} {version}" for name, version in blue.items() if name not in green]:
        return failed(
            f"on blue alone in {where}: {first_few(missing)}", "on green, as an administrator: CREATE EXTENSION …;"
        )
    odd = [f"{name} {version} on green alone" for name, (version, _) in green.items() if name not in blue]
    old = [name for name, (version, newest) in green.items() if version != newest]
    for name, version in blue.items():
        newer = f", which offers {green[name][1]}" if name in old else ""
        if newer or version != green[name][0]:
            odd.append(f"{name} {version} on blue, {green[name][0]} on green{newer}")
    if not odd:
        return ok(", ".join(f"{name} {version}" for name, version in blue.items()) + " on both sides")
    update = "; ".join(f"ALTER EXTENSION {name} UPDATE" for name in old[:3])
    return warning(
        f"{where}: {first_few(odd)}",
        f"on green, as an administrator, in a session that may write, if you want the newer one: {update};"
        if update
        else "fine where it is meant: try the application on green's",
    )


@mysql_checks.check("kind", "Is green a physical replica, or a logical one?")
def _binlog(replication: Replication) -> Verdict:
    text = "a logical replica, as always on MySQL: no server knows the outcome of a COMMIT that the switchover cuts"
    if table := replication.blue.case.settings.bg_receipts_table:
        return ok(f"{text}; receipts in {table} decide it: see receipts")
    return warning(f"{text}, and it is CommitOutcomeUnknown", _RECEIPTS)


@mysql_checks.check("keys", "Has every table a primary key, or another unique one?")
def _mysql_keys(replication: Replication) -> Verdict:
    seen = _seen(replication)
    names = [_text(name) for (name,) in replication.blue.query(_MYSQL_KEYLESS)]
    if not names:
        return ok(f"all {seen} that {replication.blue.identity.account} sees")
    return warning(
        f"{_tables(len(names))} of {seen} without a primary key or a unique one without NULL: {first_few(names)}; "
        "green may search the whole table for each row of an UPDATE or DELETE, and a switchover waits for it",
        "give each a primary key, or keep large UPDATEs and DELETEs there away from the switchover",
    )


@mysql_checks.check("engines", "Can what a transaction wrote be rolled back, whatever table it is in?")
def _mysql_engines(replication: Replication) -> Verdict:
    seen = _seen(replication)
    names = [_text(name) for (name,) in replication.blue.query(_MYSQL_ENGINES)]
    if not names:
        return ok(f"all {seen} tables are transactional")
    return warning(
        f"{_tables(len(names))} of {seen} not transactional: {first_few(names)}; what a unit of work wrote there "
        "before it was cut stays, and pool.run writes it again; a MEMORY table is empty once its server was restarted",
        "ALTER TABLE … ENGINE=InnoDB",
    )


def _django(replication: Replication) -> Verdict:
    try:
        version = importlib.metadata.version("django")
    except importlib.metadata.PackageNotFoundError:
        return ok("Django is not installed here")
    servers = [server for server in (replication.blue, replication.green) if server is not None and not server.failure]
    if not servers:
        return not_checked("no server can be asked, see login")
    texts: list[str] = []
    old: list[str] = []
    needed = ""
    for server in servers:
        runs = server.identity.runs
        least = minimums.of_django(version, runs)
        if least is None:
            return not_checked(f"what Django {version} needs is not known to this version of bgpool")
        needed = least.needed
        texts.append(f"{server.role.colour} {least.found}")
        if not least.enough:
            old.append(server.role.colour)
    text = f"Django {version} needs {needed}; {', '.join(texts)}"
    if not old:
        return ok(text)
    remedy = f"upgrade {' and '.join(old)}, or use an older Django"
    if replication.blue.case.of_django:
        return failed(f"{text}: it refuses every connection to {' and '.join(old)} (NotSupportedError)", remedy)
    return warning(f"{text}: were this database Django's, it would refuse every connection", remedy)


for _checks in (postgres_checks, mysql_checks):
    _checks.check("django", "Are the servers new enough for the Django that is installed?")(_django)


def _if_logical(replication: Replication) -> str:
    """Return the condition for a finding, as the beginning of its text; empty if green is a logical replica."""
    if replication.kind is Kind.LOGICAL:
        return ""
    return "if green becomes a logical replica (by a major version upgrade, on Aurora always), "


def _seen(replication: Replication) -> int:
    """Return the number of tables that the user can see on blue: MySQL shows only tables with a grant.

    Raises:
        EarlyVerdict: There are none.
    """
    count = int(replication.blue.query(_MYSQL_TABLES)[0][0])
    if not count:
        account = replication.blue.identity.account
        raise EarlyVerdict(not_checked(f"{account} sees no table; give bgpool doctor a DSN without a monitoring user"))
    return count


def _tables(count: int) -> str:
    return _count(count, "table")


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
