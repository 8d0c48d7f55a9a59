"""A PyMySQL without the parts that bgpool rests on is refused by name and version."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import pymysql
import pytest
import trustme
from pymysql.connections import Connection, MySQLResult

import bgpool
from bgpool import ConfigurationError, mysql_driver
from bgpool.doctor import Case
from bgpool.doctor.parameter_checks import parameter_checks
from bgpool.mysql import BoundedConnection
from bgpool.mysql_driver import check_driver


def test_the_installed_one_has_them() -> None:
    check_driver()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Connection, "_write_bytes"), (Connection, "_process_auth"), (MySQLResult, "_finish_unbuffered_query")],
)
def test_a_part_is_missing(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    monkeypatch.delattr(kind, name)
    text = rf"PyMySQL {re.escape(pymysql.VERSION_STRING)} lacks .*{kind.__name__}\.{name}.*>=1\.1\.1,<1\.3"
    with pytest.raises(ConfigurationError, match=text):
        bgpool.get_pool("mysql://app@127.0.0.1/app")


def test_a_part_is_not_used_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook would be there and never be called: no statement would be held."""

    def query(self: object, sql: str) -> None:
        self._send_query(sql)  # type: ignore[attr-defined]  # a version to come

    monkeypatch.setattr(Connection, "query", query)
    with pytest.raises(ConfigurationError, match=r"_execute_command in query\(\), _read_query_result in query\(\)"):
        bgpool.get_pool("mysql://app@127.0.0.1/app")


def test_names_are_proved_with_every_version(tmp_path: Path) -> None:
    """PyMySQL below 1.2.4 raises a ValueError where ssl_verify_identity is given alone."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    connection: Any = BoundedConnection(user="app", defer_connect=True, ssl_ca=str(ca), ssl_verify_identity=True)
    context = connection.ctx._context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("version", "params", "wanted"),
    [
        ((1, 1, 1, "final"), {}, False),
        ((1, 1, 1, "final"), {"ssl_ca": "ca.pem"}, True),
        ((1, 2, 0, "final"), {}, True),
        ((1, 2, 0, "final"), {"ssl_disabled": True}, False),
    ],
)
def test_which_version_asks_for_tls(
    monkeypatch: pytest.MonkeyPatch, version: tuple[object, ...], params: dict[str, Any], wanted: bool
) -> None:
    monkeypatch.setattr(mysql_driver, "VERSION", version)
    assert mysql_driver.wants_tls(params) == wanted


def test_the_doctor_says_whether_a_dsn_encrypts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path / "run"))
    for query, text in (("", "encrypts at most"), ("?ssl_disabled=1", "does not encrypt")):
        monkeypatch.setattr(mysql_driver, "VERSION", (1, 2, 4, "final"))
        case = Case(f"mysql://app@ledger.c0.eu-west-1.rds.amazonaws.com/app{query}")
        found = {finding.check: finding for finding in parameter_checks.run(case, "parameters")}
        assert text in found["tls"].text


def test_every_stand_in_of_the_type_checker_is_checked() -> None:
    source = (Path(bgpool.__file__).parent / "mysql.py").read_text(encoding="utf-8")
    declared = re.findall(
        r"^        (?:def )?(_\w+)[:(]", source.partition("class _Driver")[2].partition("else:")[0], re.M
    )
    checked = (Path(bgpool.__file__).parent / "mysql_driver.py").read_text(encoding="utf-8")
    # PyMySQL 1.1.1 has it on open connections only, and nothing reads it.
    assert {name for name in declared if f'"{name}"' not in checked} <= {"_rfile"}
