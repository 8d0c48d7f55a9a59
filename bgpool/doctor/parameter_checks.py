"""Checks of the DSN and its parameters, without network access."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from pymysql import VERSION_STRING

from bgpool.core.engine import Engine
from bgpool.core.timeouts import hold_misfit, timer_misfit
from bgpool.doctor.case import Case
from bgpool.doctor.findings import Checks, Verdict, failed, not_checked, ok, warning
from bgpool.dsn import MONITORING_PREFIX, Dsn, names_are_proved
from bgpool.mysql_driver import wants_tls
from bgpool.resolver import is_address
from bgpool.settings import Settings

__all__ = ["parameter_checks"]

parameter_checks: Final[Checks[Case]] = Checks()

_TIMEOUTS: Final = {
    Engine.POSTGRESQL: ("connect_timeout",),
    Engine.MYSQL: ("connect_timeout", "read_timeout", "write_timeout"),
}
#: Certificates of all regions. Source: AWS, "Using SSL/TLS to encrypt a connection to a DB instance".
_BUNDLE: Final = "global-bundle.pem"
_VERIFYING: Final = {
    Engine.POSTGRESQL: f"sslmode=verify-full&sslrootcert={_BUNDLE}",
    Engine.MYSQL: f"ssl_ca={_BUNDLE}&ssl_verify_identity=true",
}


@parameter_checks.check("alias", "Which RDS or Aurora endpoint does the host stand for?")
def _alias(case: Case) -> Verdict:
    host, alias = case.dsn.endpoint, case.alias
    if alias.endpoint == host:
        return ok(f"{host} is an endpoint itself")
    if case.settings.endpoint is not None:
        return ok(f"{host or 'no host'} stands for {alias.endpoint}, as endpoint= says")
    if alias.endpoint is not None:
        return ok(f"{host} is an alias of {alias.endpoint}")
    state = "add endpoint=NAME.ID.REGION.rds.amazonaws.com to the DSN"
    if alias.failure:
        return failed(f"it cannot be determined whether {host} is an alias: {alias.failure}", state)
    what = "an address" if is_address(host) else "neither an endpoint nor an alias of one"
    return failed(f"{host or 'the local socket'} is {what}: its pools take no part in switchovers", state)


@parameter_checks.check("timeouts", "Does every connect and every wait for an answer end?")
def _timeouts(case: Case) -> Verdict:
    found: list[str] = []
    for prefix, params in (("", case.dsn.params), (MONITORING_PREFIX, case.config.params)):
        for name in _TIMEOUTS[case.dsn.engine]:
            value = _number(params.get(name))
            if value <= 0:
                return failed(f"{prefix}{name} is {params.get(name)!r}: no end", f"{prefix}{name}=10")
            found.append(f"{prefix}{name} {value} s")
    return ok(", ".join(found))


@parameter_checks.check("intervals", "Is the status read as often as it should be?")
def _intervals(case: Case) -> Verdict:
    texts, unusual = [], []
    for field in fields(Settings):
        usual, value = field.metadata["usual"], getattr(case.settings, field.name)
        if usual is not None:
            texts.append(f"{field.name} {value}")
            if not usual[0] <= value <= usual[1]:
                unusual.append(f"{field.name} from {usual[0]} to {usual[1]}")
    text = ", ".join(texts) + " (ms)"
    return warning(text, f"usual: {', '.join(unusual)}") if unusual else ok(text)


@parameter_checks.check("hold", "Are callers held while a switchover passes?")
def _hold(case: Case) -> Verdict:
    hold_ms, timer_ms = case.settings.bg_connect_timeout_ms, case.settings.bg_switchover_timeout_ms
    text = f"for up to {hold_ms} ms each; a switchover counts as over after {timer_ms} ms"
    if hold_ms == 0:
        return warning(f"{text}: every checkout during a switchover fails at once", "bg_connect_timeout_ms=30000")
    return ok(text)


@parameter_checks.check("switchover timeout", "Does bgpool wait for a switchover as long as AWS may take?")
def _switchover_timeout(case: Case) -> Verdict:
    misfit = timer_misfit(case.settings.bg_switchover_timeout_ms)
    if misfit:
        return warning(*misfit.split(": ", 1))
    return ok(f"bg_switchover_timeout_ms {case.settings.bg_switchover_timeout_ms}, and AWS allows 300 s by default")


@parameter_checks.check("worker timeout", "Does the application's server leave callers alone while they are held?")
def _worker_timeout(case: Case) -> Verdict:
    hold_ms, limit_s = case.settings.bg_connect_timeout_ms, case.busy_limit_s
    if limit_s is None:
        return not_checked(
            f"a caller is held for up to {hold_ms / 1000:g} s; after how long the server ends a busy worker is not "
            "known: give --worker-timeout SECONDS (gunicorn's timeout is 30 s by default, and counts for sync workers)"
        )
    misfit = hold_misfit(hold_ms, int(limit_s * 1000))
    if misfit:
        return warning(*misfit.split(": ", 1))
    ends = f"the server ends a worker that is busy for {limit_s:g} s" if limit_s else "the server ends no busy worker"
    return ok(f"a caller is held for up to {hold_ms / 1000:g} s, and {ends}")


@parameter_checks.check("tls", "Do servers have to prove their names?")
def _tls(case: Case) -> Verdict:
    sides = {"the application": case.dsn.params, "the monitor": case.config.params}
    unproved = [who for who, params in sides.items() if not names_are_proved(params)]
    if not unproved:
        return ok("verify-full" if case.dsn.engine is Engine.POSTGRESQL else "ssl_verify_identity")
    return warning(
        f"servers need not prove their names to {' and '.join(unproved)} ({_unproved_mode(case.dsn)}): an attacker "
        "who redirects a name can impersonate blue",
        f"add {_VERIFYING[case.dsn.engine]} to the DSN; bgpool keeps names apart from addresses, also in a switchover",
    )


def _unproved_mode(dsn: Dsn) -> str:
    """Return how the application's connections are protected if no name is verified."""
    if dsn.engine is Engine.POSTGRESQL:
        return f"sslmode={dsn.params.get('sslmode') or 'prefer'}"
    if dsn.params.get("unix_socket"):
        return "a Unix socket"
    if not wants_tls(dsn.params):
        return f"PyMySQL {VERSION_STRING} does not encrypt with this DSN"
    return f"PyMySQL {VERSION_STRING} encrypts at most, and takes any server's word for who it is"


@parameter_checks.check("password", "Can the monitor have the password, too?")
def _password(case: Case) -> Verdict:
    if case.config.password_callable is not None:
        return ok("a callable, which the monitor's process can import")
    return not_checked("given as text" if case.dsn.params.get("password") else "none is given as text")


def _number(value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0
