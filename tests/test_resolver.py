"""Names to addresses, by file, by system, and by a DNS server of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from bgpool.errors import ConfigurationError
from bgpool.resolver import make_resolver


def test_hosts_file_counts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# lab\n10.0.0.1 Blue.example.com blue  # here\n::1 blue\n")
    resolver = make_resolver(f"hosts:{path}")
    assert resolver.resolve("BLUE.example.com.") == ("10.0.0.1",)
    assert resolver.resolve("blue") == ("10.0.0.1", "::1")
    assert resolver.resolve("green") == ()
    path.write_bytes(b"10.0.0.2 blue # caf\xe9\n")
    assert resolver.resolve("blue") == ("10.0.0.2",)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        resolver.resolve("blue")


def test_system() -> None:
    assert "127.0.0.1" in make_resolver("system").resolve("localhost")
    assert make_resolver("system").resolve("127.0.0.9") == ("127.0.0.9",)


@pytest.mark.parametrize(
    "setting",
    ["hosts:", "dns://", "dns://127.0.0.1", "dns://name:53", "dns://127.0.0.1:x", "dns://127.0.0.1:65536", "x"],
)
def test_bad_settings(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="hosts:FILE"):
        make_resolver(setting)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, str | None]]]:
    """A DNS server; a name without an entry does not exist, one with None gets no answer."""
    zone: dict[str, str | None] = {"blue.example.com.": "10.0.0.1", "stalled.example.com.": None}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    data, peer = sock.recvfrom(512)
                except TimeoutError:
                    continue
                query = dns.message.from_wire(data)
                reply = dns.message.make_response(query)
                reply.flags |= dns.flags.RA
                question = query.question[0]
                name = question.name.to_text()
                if name not in zone:
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                elif (address := zone[name]) is None:
                    continue
                elif question.rdtype == 1:
                    reply.answer.append(dns.rrset.from_text(name, 5, "IN", "A", address))
                sock.sendto(reply.to_wire(), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"dns://127.0.0.1:{sock.getsockname()[1]}", zone
        done.set()
        thread.join()


def test_dns(server: tuple[str, dict[str, str | None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.resolver.RESOLVE_TIMEOUT_S", 0.3)
    setting, zone = server
    resolver = make_resolver(setting)
    assert resolver.resolve("blue.example.com") == ("10.0.0.1",)
    zone["blue.example.com."] = "10.0.0.2"
    assert resolver.resolve("blue.example.com") == ("10.0.0.2",)
    assert resolver.resolve("gone.example.com") == ()
    with pytest.raises(OSError, match="stalled"):
        resolver.resolve("stalled.example.com")
