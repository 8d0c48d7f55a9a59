"""``bgpool receipts``: print the DDL of the receipts table, and check whether units of work can use it."""

from __future__ import annotations

import typer

from bgpool.cli.doctor import report_findings
from bgpool.core.phase import Role
from bgpool.doctor import Case, exit_code
from bgpool.doctor.findings import Finding, Result
from bgpool.doctor.receipts_checks import DEFAULT_TABLE, ReceiptsTable, ddl_of, receipts_checks
from bgpool.doctor.server import Server
from bgpool.dsn import parse
from bgpool.errors import ConfigurationError

__all__ = ["check", "print_ddl"]

_WHERE = "receipts"


def print_ddl(dsn: str) -> int:
    """Print the statements that create the table of *dsn* for its user. Return the exit status, 2 for a bad DSN."""
    try:
        place, settings, _ = parse(dsn, {})
        user = place.user
        if not user:
            raise ConfigurationError("dsn: a user is needed, for the GRANT")
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        return 2
    table = settings.bg_receipts_table or DEFAULT_TABLE
    typer.echo(ddl_of(place, table), nl=False)
    return 0


def check(dsn: str, *, as_json: bool) -> int:
    """Print whether units can use the table of *dsn*. Return the exit status: 0, 1 if not, 2 if the DSN is invalid."""
    try:
        case = Case(dsn)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        return 2
    server = Server(case, Role.SOURCE, case.dsn.host, case.dsn.port, as_application=True)
    server.open()
    try:
        if server.failure:
            question = "Does the server let the application in?"
            findings = [Finding(_WHERE, "login", question, Result.FAILED, server.failure, server.remedy)]
        else:
            name = case.settings.bg_receipts_table or DEFAULT_TABLE
            table = ReceiptsTable(server, name, case.settings.bg_receipts_retention_s)
            findings = receipts_checks.run(table, _WHERE)
    finally:
        server.close()
    report_findings(case, findings, as_json=as_json)
    return exit_code(findings)
