"""A real Redis or Valkey for the fleet's tests and the lab: a child process without persistence, except with settings.

    with RedisServer() as server:
        server.user("bgpool", "secret", "+xadd", "+xread", "+xrevrange", "~bgpool:*")
        bus = StreamBus(FleetConfig(server.url(user="bgpool", password="secret")), "ledger")

The lab itself connects through a unix socket, as a user of its own, even when clients are refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import trustme

from bgpool.lab import watchdog
from bgpool.lab.addresses import free_addresses
from bgpool.lab.binaries import VERSION_TIMEOUT_S, Account, Programs, account_for
from bgpool.lab.errors import LabError, ProgramsError
from bgpool.lab.files import write_atomically
from bgpool.lab.guard import Guard
from bgpool.lab.program_paths import PATH
from bgpool.lab.waiting import wait_until

__all__ = ["RedisServer", "find_redis", "join_cluster"]

VARIABLE: Final = "BGPOOL_LAB_REDIS"
SERVERS: Final = ("redis-server", "valkey-server")
PLACES: Final = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")
ACCOUNTS: Final = ("redis", "valkey", "nobody")
"""The accounts that run the server when the lab is root's: the first of these that exists."""

OLDEST: Final = (6, 2)
"""The first version with NOMKSTREAM, and with the option that keeps the command line unchanged."""

HINT: Final = "apt-get install redis-server (Debian, Ubuntu), dnf install valkey (Fedora, RHEL) or brew install valkey"

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
LAB_USER: Final = "bgpool-lab"
LAB_PASSWORD: Final = secrets.token_hex(16)
"""The password of this process's servers, which replicas use for their primaries."""

LOG_TAIL_CHARACTERS: Final = 2000


def find_redis(place: str | Path | None = None) -> tuple[Programs, str]:
    """Find a server, and the account to run it as; Redis if both exist.

    Args:
        place: The program, or a directory that holds it, or a ``bin`` with it; ``"path"`` for the PATH and `PLACES`.
            None for the value of ``$BGPOOL_LAB_REDIS``, or else the same as ``"path"``.

    Returns:
        Its directory, product and account; and the name of the program there.

    Raises:
        ProgramsError: None was found that is new enough.
        LabError: The lab is root's and none of `ACCOUNTS` exists.
    """
    chosen = str(place) if place is not None else os.environ.get(VARIABLE) or PATH
    account = account_for("Redis", ACCOUNTS)
    reasons: list[str] = []
    for candidate in filter(Path.is_file, _candidates(chosen)):
        try:
            return _programs(candidate, account), candidate.name
        except LabError as error:
            reasons.append(str(error))
    why = "; ".join(reasons) or f"looked at {chosen if chosen != PATH else 'the PATH and ' + ', '.join(PLACES)}"
    raise ProgramsError(f"no Redis or Valkey server found: {why}. {HINT}", VARIABLE)


class RedisServer:
    """One server at a loopback address of its own; a context manager, which removes all of it at its end.

    Attributes:
        address, port: The address and port that it listens on.
        product: The product and version, such as ``Redis 7.0.15``.
        ca_file: The authority of its certificate; None without TLS.
    """

    def __init__(
        self,
        *,
        guard: Guard | None = None,
        place: str | Path | None = None,
        address: str | None = None,
        port: int | None = None,
        tls: Iterable[str] = (),
        cluster: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start a server that every client may use without a password, until `user` or `execute` restricts it.

        Args:
            guard: The guard whose directories are used, and which removes them; by default one of its own.
            place: The same as for `find_redis`.
            address, port: The address and port to listen on, on loopback; by default free ones.
            tls: The names of its certificate, if it uses TLS, and then only TLS.
            cluster: True for a node of a cluster; see `join_cluster`. The port of the cluster's bus is the one after
                *port*.
            settings: Settings of redis.conf, which override those of the lab: ``{"appendonly": "yes"}``, for example.

        Raises:
            LabError: There is no program, or it did not start; the message ends with its log.
        """
        self._programs, self._program = find_redis(place)
        self.product: Final = self._programs.product
        addresses, free_port = free_addresses(1)
        self.address: Final = address or addresses[0]
        self.port: Final = port or free_port
        self._guard: Final = guard or Guard()
        self._own_guard: Final = guard is None
        key = f"r-{secrets.token_hex(4)}"
        self.home: Final = self._guard.base / key
        # Next to the others if the path below the home is too long for a socket.
        self._socket_dir: Final = self._guard.sockets / f"{key}-s"
        self._socket: Final = self._socket_dir / "s"
        self._log: Final = self.home / "log"
        self._cluster: Final = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._names: Final = tuple(tls)
        self.ca_file: Path | None = None
        self._given: Final = dict(settings or {})
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- life ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process id while the server's process exists, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, *, wait: bool = True) -> None:
        """Start it with its saved data; does nothing if it runs already.

        Args:
            wait: True to wait until it accepts commands; False if it may still be loading its data.

        Raises:
            LabError: It ended, or accepts no commands within `START_TIMEOUT_S`.
        """
        if self.pid is not None:
            return
        self._socket.unlink(missing_ok=True)
        with self._log.open("ab") as output:
            self._process = self._programs.popen(self._program, str(self.home / "redis.conf"), output=output)
        try:
            wait_until(
                lambda: self.pid is None or (self.answers() if wait else self._socket.exists()),
                timeout_s=START_TIMEOUT_S,
                what=f"{self.product} at {self.address}:{self.port} takes commands",
            )
        except LabError as error:
            raise LabError(f"{error}; its log ends: {self._log_tail()}") from None
        if self.pid is None:
            raise LabError(f"{self.product} ended while it started; its log ends: {self._log_tail()}")

    def stop(self) -> None:
        """Shut it down in order, and save its data according to `settings`; does nothing if it does not run."""
        if self._process is None or self.pid is None:
            return
        watchdog.send(self._process.pid, signal.SIGTERM)
        self.thaw()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it by SIGKILL; does nothing if it is gone."""
        if self._process is not None and self.pid is not None:
            watchdog.send(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT_S)

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop it by SIGSTOP: the kernel still accepts connections, but nothing answers. `thaw` ends that."""
        if self.pid is not None:
            watchdog.send(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server continue; does nothing if it is not frozen."""
        if self.pid is not None:
            watchdog.send(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove all its files; idempotent. Has no effect in a forked child."""
        if not self._guard.is_owner:
            return
        self.kill()
        for directory in (self.home, self._socket_dir):
            shutil.rmtree(directory, ignore_errors=True)
        if self._own_guard:
            self._guard.close()

    # -- use -----------------------------------------------------------------------------------------------

    def url(self, *, user: str = "", password: str = "", host: str = "", db: int = 0, options: str = "") -> str:
        """Return a URL for clients; with TLS it names the authority.

        Args:
            user, password: The user to log in as; empty for the default user without a password.
            host: The name or address in the URL; empty for the server's address.
            db: The number of the database.
            options: More options, in the form ``a=1&b=2``.
        """
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        ca = f"ssl_ca_certs={self.ca_file}" if self.ca_file else ""
        query = "&".join(filter(None, (ca, options)))
        scheme = "rediss" if self.ca_file else "redis"
        return f"{scheme}://{login}{host or self.address}:{self.port}/{db or ''}{'?' if query else ''}{query}"

    def execute(self, *command: str | bytes | int) -> Any:
        """Run one command as the lab's user, who has all rights, and return the unchanged answer.

        Raises:
            redis.exceptions.RedisError: The error of the server, or it does not answer.
        """
        from redis import connection as redis_connection

        made: Any = redis_connection.UnixDomainSocketConnection  # its type annotations depend on the release
        connection = made(
            path=str(self._socket), username=LAB_USER, password=LAB_PASSWORD, protocol=2, socket_timeout=5.0
        )
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def answers(self) -> bool:
        """Return whether it runs and accepts commands."""
        from redis.exceptions import RedisError

        if self.pid is None:
            return False
        try:
            # Tried first: redis-py 5.0 leaves a socket open that it could not connect.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self._socket))
            return bool(self.execute("PING") == b"PONG")
        except (OSError, RedisError):
            return False

    def user(self, name: str, password: str, *rules: str) -> None:
        """Make or change the user *name*, with exactly the rights in *rules* of the ACL."""
        self.execute("ACL", "SETUSER", name, "reset", "on", f"#{_hashed(password)}", *rules)

    def require_password(self) -> None:
        """Reject clients without a user and a password from now on."""
        self.execute("ACL", "SETUSER", "default", "off")

    def follow(self, primary: RedisServer) -> None:
        """Become a replica of *primary*, and wait until all of its data are here."""
        self.execute("REPLICAOF", primary.address, primary.port)
        wait_until(lambda: self._link() == "up", timeout_s=START_TIMEOUT_S, what="the replica has its primary's data")

    def promote(self) -> None:
        """Become a primary."""
        self.execute("REPLICAOF", "NO", "ONE")

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid is not None else "stopped"
        return f"<RedisServer {self.product} {self.address}:{self.port} {state}>"

    # -- inside --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        data = self.home / "data"
        for directory in (self.home, data, self._socket_dir):
            directory.mkdir(mode=0o700)
            self._programs.give(directory)
        settings = self._settings(data)
        if self._names:
            settings |= self._certified(self.home)
        settings |= self._given
        lines = [f"{name} {value}" for name, value in settings.items()]
        lines += [
            f"user {LAB_USER} on #{_hashed(LAB_PASSWORD)} ~* &* +@all",
            "user default on nopass ~* &* +@all",
        ]
        write_atomically(self.home / "redis.conf", "\n".join(lines) + "\n", mode=0o600, prepare=self._programs.give)

    def _settings(self, data: Path) -> dict[str, str]:
        settings = {
            "bind": self.address,
            "port": str(self.port),
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "protected-mode": "no",
            "dir": str(data),
            "daemonize": "no",
            # The watchdog finds a server by the paths in its command line.
            "set-proc-title": "no",
            "save": '""',
            "appendonly": "no",
            "masteruser": LAB_USER,
            "masterauth": LAB_PASSWORD,
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            "repl-ping-replica-period": "1",
        }
        if self._cluster:
            settings |= {
                "cluster-enabled": "yes",
                "cluster-node-timeout": "1000",
                "cluster-announce-ip": self.address,
                "cluster-port": str(self.port + 1),
            }
        return settings

    def _certified(self, directory: Path) -> dict[str, str]:
        authority = _authority()
        certificate = authority.issue_cert(*self._names)
        self.ca_file = self._guard.base / f"{self.home.name}-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self.ca_file.chmod(0o644)
        files = {"tls-cert-file": directory / "cert.pem", "tls-key-file": directory / "key.pem"}
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems).decode()
        key = certificate.private_key_pem.bytes().decode()
        for path, text in zip(files.values(), (chain, key), strict=True):
            write_atomically(path, text, mode=0o600, prepare=self._programs.give)
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-ca-cert-file": str(self.ca_file),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
            "tls-cluster": "yes",
        } | {name: str(path) for name, path in files.items()}

    def _link(self) -> str:
        found = re.search(rb"master_link_status:(\w+)", self.execute("INFO", "replication"))
        return found[1].decode() if found else ""

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        return "(no log)"


def join_cluster(*nodes: RedisServer) -> None:
    """Make a cluster of *nodes*, which were started as such, each with an equal share of the slots, and wait for it.

    Raises:
        LabError: The cluster was not complete within `START_TIMEOUT_S`.
    """
    share = -(-16384 // len(nodes))
    for number, node in enumerate(nodes):
        slots = range(number * share, min((number + 1) * share, 16384))
        node.execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        node.execute("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
    for node in nodes[1:]:
        node.execute("CLUSTER", "MEET", nodes[0].address, nodes[0].port, nodes[0].port + 1)
    for node in nodes:
        wait_until(
            lambda node=node: b"cluster_state:ok" in node.execute("CLUSTER", "INFO"),  # type: ignore[misc]  # mypy 2.4
            timeout_s=START_TIMEOUT_S,
            what=f"{node.address}:{node.port} is part of the cluster",
        )


def _candidates(place: str) -> list[Path]:
    if place == PATH:
        found = []
        for name in SERVERS:
            on_path = shutil.which(name)
            found += [Path(on_path)] if on_path else []
            found += [Path(directory) / name for directory in PLACES]
        return found
    if Path(place).is_file():
        return [Path(place)]
    return [Path(place) / below / name for name in SERVERS for below in (".", "bin", "sbin")]


def _programs(server: Path, account: Account | None) -> Programs:
    """Return the programs at *server*, which is not resolved: on Debian it is a link to a program of another name.

    Raises:
        LabError: It cannot be run, is something else, or is too old.
    """
    directory = server.parent.resolve()
    # As the caller: if the account cannot reach it, the start fails with an error.
    said = Programs(directory).run(server.name, "--version", timeout_s=VERSION_TIMEOUT_S)
    found = re.search(r"(Redis|Valkey) server v=((\d+)\.(\d+)\S*)", said)
    if found is None or (int(found[3]), int(found[4])) < OLDEST:
        raise LabError(f"{server} is {said.strip()[:200]!r}; Redis {OLDEST[0]}.{OLDEST[1]} or Valkey is needed")
    return Programs(directory, account, f"{found[1]} {found[2]}")


@functools.cache
def _authority() -> trustme.CA:
    """Return the authority of this process's servers, which they use to authenticate to each other."""
    return trustme.CA()


def _hashed(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()
