"""The cost of logins at a MySQL release: many workers on few cores, and one login piece by piece."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import trustme

from benchmarks import mysql_login_process, mysql_release_process
from benchmarks.aims import Aim, aims
from benchmarks.builds import NOW, builds, environment
from benchmarks.clients import Config
from benchmarks.result import Column, Result, Table, Value
from benchmarks.run_dir import RunDir
from bgpool.core.engine import Engine
from bgpool.lab import Director, LabError, Pair, Schedule, ledger
from bgpool.lab.pair import ROLE
from bgpool.lab.program_paths import VARIABLES
from bgpool.lab.server import Server
from bgpool.lab.server_factories import find_servers

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "A MySQL release"
QUESTION: Final = (
    "How soon are 64 workers, each with a pool of one connection, back over TLS on a green server with no password in "
    "its cache, and how much of that time is the login? They are compared with the build before, and with an oracle: "
    "PyMySQL's connections, to addresses that it knows, with a TLS context that was made before. Certificates are "
    "loaded from a bundle as large as RDS's."
)
BG_ID: Final = "bench"
WORKERS: Final = 64
PAUSE_S: Final = 0.1
ROUNDS: Final = 2

TLS, RSA, REPLACED = "TLS", "RSA, no TLS", "TLS, bundle replaced before"
ORACLE, BARE = "oracle", "PyMySQL"

#: The schedule of the switchover. All callers wait before green opens.
SCHEDULE: Final = Schedule(
    initiated_s=-0.6,
    writes_stopped_s=0.2,
    connections_dropped_s=0.3,
    caught_up_s=0.35,
    green_promoted_s=1.0,
    old_blue_open_s=1.7,
    names_changed_s=1.8,
    blue_dns_moved_s=1.9,
    green_dns_gone_s=2.0,
    completed_s=2.1,
)
_START_TIMEOUT_S: Final = 60.0
_PIECES: Final = ("whole", "login", "context", "handshake", "encryption", "statements", "server")
_SYSTEMS_BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def run(*, quick: bool) -> Result:
    """Run one repetition on the server that ``$BGPOOL_LAB_MYSQL`` names, or on the installed one."""
    product = find_servers(Engine.MYSQL)
    notes = [f"On {product}, {os.cpu_count()} cores."]
    releases: list[Mapping[str, Value]] = []
    logins: list[Mapping[str, Value]] = []
    if product.startswith("MariaDB"):
        notes.append(f"Not measured: this needs a MySQL server, which ${VARIABLES[Engine.MYSQL]} names.")
    else:
        with builds() as found, Pair(engine="mysql") as pair, tempfile.TemporaryDirectory() as directory:
            clients = [*found, ORACLE]
            certify = _Certificates(Path(directory))
            logins = _logins(pair, certify, found, 1 if quick else ROUNDS)
            ledger.create(pair)
            for client in clients[:1] if quick else clients:
                if releases:
                    pair.renew()
                build, workers = found.get(client, found[NOW]), 8 if quick else WORKERS
                releases.append({"client": client, **_release(pair, certify, client, build, workers)})
    return Result((_release_table(releases, notes), _login_table(logins, notes), _aims(releases, logins)))


# -- a release -----------------------------------------------------------------------------------------------------


class _Certificates:
    """The certificates of the servers, and the bundle with which clients verify them."""

    def __init__(self, directory: Path) -> None:
        self._authority: Final = trustme.CA(key_type=trustme.KeyType.RSA)
        self.bundle: Final = directory / "bundle.pem"
        more = _SYSTEMS_BUNDLE.read_bytes() if _SYSTEMS_BUNDLE.exists() else b""
        self.bundle.write_bytes(self._authority.cert_pem.bytes() + more)

    def issue(self, pair: Pair) -> None:
        """Issue certificates with which both servers prove blue's name, and green its own."""
        for server in (pair.blue, pair.green):
            names = {pair.names.blue.primary, pair.names.green.primary}
            shown = self._authority.issue_cert(*names, key_type=trustme.KeyType.RSA)
            self._put(server, "server-key.pem", shown.private_key_pem.bytes())
            self._put(server, "server-cert.pem", b"".join(part.bytes() for part in shown.cert_chain_pems))
            self._put(server, "ca.pem", self._authority.cert_pem.bytes())
            server.execute("ALTER INSTANCE RELOAD TLS")

    @staticmethod
    def _put(server: Server, name: str, content: bytes) -> None:
        # Write into the existing file, which belongs to the server.
        (server.data_dir / name).write_bytes(content)

    def dsn(self, pair: Pair, way: str) -> str:
        """Return the application's DSN."""
        tls = f"ssl_ca={self.bundle}&ssl_verify_identity=true" if way != RSA else "ssl_disabled=true"
        return f"{pair.dsn}&{tls}"


def _release(pair: Pair, certify: _Certificates, client: str, build: Path, workers: int) -> dict[str, Value]:
    """Run one switchover under *workers* workers."""
    certify.issue(pair)
    director = Director(pair, SCHEDULE)
    # Clear the cache: earlier logins on green have left the password in it.
    director.add("password_forgotten", SCHEDULE.caught_up_s, partial(_forget_passwords, pair.green))
    with RunDir(build) as run_dir, contextlib.ExitStack() as stack:
        config = Config.of(pair, directory=str(run_dir.path)).with_(dsn=certify.dsn(pair, TLS))
        kind = "oracle" if client == ORACLE else "pool"
        orders = mysql_release_process.Orders(kind, config, workers, PAUSE_S)
        process = stack.enter_context(_line_process("mysql_release_process", build, orders.as_line()))
        process.wait("ready")
        director.create_deployment()
        if kind == "pool":
            run_dir.wait_ready(BG_ID, timeout_s=_START_TIMEOUT_S)
        director.run()
        opened_s = director.event("green_open").monotonic_s
        time.sleep(0.5)
        found = process.ask(f"{opened_s}\n")
    firsts_s = found["firsts_s"]
    return {
        "errors": found["errors"] if kind == "pool" else None,
        "median_s": statistics.median_low(firsts_s) if len(firsts_s) * 2 > workers else None,
        "last_s": max(firsts_s) if len(firsts_s) == workers else None,
    }


class _LineProcess:
    """A process that receives lines and answers with lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process: Final = process

    def wait(self, word: str) -> None:
        """Wait until it prints *word*.

        Raises:
            LabError: It prints something else, or exits.
        """
        if (said := self._output.readline().strip()) != word:
            raise LabError(f"a process of the benchmark said {said!r} instead of {word!r}")

    def ask(self, line: str) -> Any:
        """Send *line* and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return json.loads(self._output.readline())

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout


@contextlib.contextmanager
def _line_process(module: str, build: Path, orders: str) -> Iterator[_LineProcess]:
    """Start *module* of this package as a process with *build*, and send its *orders*. It ends with the block."""
    environ = environment(build, dict(os.environ))
    # Without the option -P of Python 3.11, Python searches the current directory first.
    command = [sys.executable, "-m", f"benchmarks.{module}"]
    with subprocess.Popen(
        command, cwd=build, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            process.stdin.write(orders)
            process.stdin.flush()
            yield _LineProcess(process)
            process.wait(_START_TIMEOUT_S)
        finally:
            process.kill()


# -- a login -------------------------------------------------------------------------------------------------------


def _logins(pair: Pair, certify: _Certificates, found: Mapping[str, Path], rounds: int) -> list[Mapping[str, Value]]:
    """Return the figures of a process's first login on green, by way and client, in alternating rounds."""
    certify.issue(pair)
    kinds = {**dict.fromkeys(found, "pool"), ORACLE: "oracle", BARE: BARE}
    cases = [(way, client) for way in (TLS, REPLACED, RSA) for client in kinds if way == TLS or client in found]
    cases.append((RSA, ORACLE))
    samples: dict[tuple[str, str], list[Mapping[str, float]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for way, client in cases:
            build = found.get(client, found[NOW])
            samples[way, client].append(_login(pair, certify, kinds[client], build, way))
    return [
        {
            "way": way,
            "client": client,
            **{f"{piece}_ms": _median(piece, samples[way, client]) for piece in _PIECES},
            "ratio": _median("login", samples[way, client]) / _median("login", samples[_like(way), ORACLE]),
        }
        for way, client in cases
    ]


def _like(way: str) -> str:
    return TLS if way == REPLACED else way


def _median(piece: str, samples: Sequence[Mapping[str, float]]) -> float:
    return statistics.median(sample.get(piece, 0.0) for sample in samples)


def _login(pair: Pair, certify: _Certificates, kind: str, build: Path, way: str) -> Mapping[str, float]:
    """Return the pieces of one login, in ms of CPU time."""
    with tempfile.TemporaryDirectory() as directory:
        orders = mysql_login_process.Orders(
            kind,
            certify.dsn(pair, way),
            (pair.names.blue.primary, pair.names.green.primary),
            (pair.blue.address, pair.green.address),
            pair.resolver,
            str(Path(directory) / "run"),
            str(certify.bundle) if way == REPLACED else "",
        )
        # Green has the password in its cache during the trial login, because other clients have logged in there.
        pair.green.wire(user=ROLE, password=pair.app_password, application="warm", timeout_s=5.0).close()
        with _line_process("mysql_login_process", build, orders.as_line()) as process:
            process.wait("held")
            _forget_passwords(pair.green)
            before_ns = _server_ns(pair.green)
            pieces: Mapping[str, float] = process.ask("release\n")
            return {**pieces, "server": (_server_ns(pair.green) - before_ns) / 1e6}


def _forget_passwords(server: Server) -> None:
    server.execute("FLUSH PRIVILEGES")


def _server_ns(server: Server) -> int:
    """Return the CPU time of the threads of *server*, which keeps them for the next client."""
    found = 0
    for path in Path(f"/proc/{server.pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            found += int(path.read_text().split()[0])
    return found


# -- what is shown -------------------------------------------------------------------------------------------------

_WAY: Final = Column("way", "Way", is_key=True)
_CLIENT: Final = Column("client", "Client", is_key=True)


def _release_table(rows: Sequence[Mapping[str, Value]], notes: Sequence[str]) -> Table:
    oracle: Mapping[str, Value] = next((row for row in rows if row["client"] == ORACLE), {})
    return Table(
        "release",
        f"{WORKERS} workers over TLS, from the moment at which green was open to a worker's first row",
        (
            _CLIENT,
            Column("errors", "Errors callers saw", 0),
            Column("median_s", "Median worker (s)", 3),
            Column("last_s", "Last worker (s)", 3),
            Column("median_ratio", "Median / oracle's", 2),
            Column("last_ratio", "Last / oracle's", 2),
        ),
        tuple(
            {
                **row,
                "median_ratio": _ratio(row["median_s"], oracle.get("median_s")),
                "last_ratio": _ratio(row["last_s"], oracle.get("last_s")),
            }
            for row in rows
        ),
        ranked_by=("last_s",),
        rivals="client",
        notes=(
            *notes,
            "Errors of the oracle before it has found green do not count as a caller's errors. The first of its "
            "workers has logged in before the others begin, and its password is in green's cache.",
        ),
    )


def _login_table(rows: Sequence[Mapping[str, Value]], notes: Sequence[str]) -> Table:
    labels = {
        "whole": "From the release to the connection, all threads",
        "login": "Login",
        "context": "of it: TLS context",
        "handshake": "TLS handshake",
        "encryption": "RSA",
        "statements": "statements",
        "server": "At the server",
    }
    return Table(
        "login",
        "The first login of a process on a cold green: CPU time in ms",
        (
            _WAY,
            _CLIENT,
            *(Column(f"{piece}_ms", labels[piece], 2) for piece in _PIECES),
            Column("ratio", "Login / oracle's", 2),
        ),
        tuple(rows),
        notes=(
            *notes,
            f"Medians of {ROUNDS} processes. {BARE}: with a TLS context for each connection, which is its default.",
            "The process has logged in to blue before, and blue's cache has the password.",
        ),
    )


def _ratio(mine: Value, theirs: Value) -> float | None:
    return mine / theirs if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)) and theirs else None


def _aims(releases: Sequence[Mapping[str, Value]], logins: Sequence[Mapping[str, Value]]) -> Table:
    found = {row["client"]: row for row in releases}
    judged = []
    for which, most in (("median", 1.4), ("last", 1.15)):
        mine, oracle = (found.get(client, {}).get(f"{which}_s") for client in (NOW, ORACLE))
        judged.append(Aim(f"first row of the {which} of {WORKERS} workers / the oracle's", most, _ratio(mine, oracle)))
    for row in logins:
        if row["client"] == NOW:
            share, context = row["ratio"], row["context_ms"]
            assert isinstance(share, float)
            assert isinstance(context, float)
            judged.append(Aim(f"{row['way']}: CPU time of the first login on green / the oracle's", 1.25, share))
            if row["way"] != RSA:
                judged.append(Aim(f"{row['way']}: TLS context, CPU time at the release (ms)", 0.2, context))
    return aims(*judged)
