"""``python -m benchmarks.fanout``: the cost of a fleet's bus with 10, 100 and 1,000 hosts, and its delivery times.

It uses a real server, and the real messages of one leader at its real rates. Each host has the two connections of its
monitor: one waits for messages, and one reports. All connections of the hosts are in one light process, which competes
with the server for the machine's cores. The work of real monitors on a message is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import selectors
import socket
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bgpool.core.events import Answered, StatusRead, StatusRow
from bgpool.core.fleet import NEVER, FleetRole, Message, Reading, Report
from bgpool.core.limits import (
    FLEET_BLOCK_S,
    FLEET_BLOCK_SWITCHING_S,
    FLEET_ENTRIES_READ,
    FLEET_HEARTBEAT_S,
    FLEET_HEARTBEAT_SWITCHING_S,
    FLEET_REPORT_S,
    FLEET_TIMEOUT_S,
    FLEET_WHOLE_S,
)
from bgpool.core.phase import Phase, Role
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.messages import seal, seal_report
from bgpool.fleet.streams import HOSTS_KEPT, StreamBus, stream_keys
from bgpool.lab.redis import RedisServer

__all__ = ["Figures", "measure"]

BG_ID: Final = "ledger"
KEYS: Final = (b"k" * 32,)
BLUE: Final = "shop.cluster-c0abcdefghij.eu-west-1.rds.amazonaws.com"
GREEN: Final = "shop-green-x1y2z3.cluster-c0abcdefghij.eu-west-1.rds.amazonaws.com"
#: The metadata rows of a deployment: one for each role of an instance, and those of a cluster with readers.
ROWS: Final = {"instance": 2, "cluster": 12}
#: In a switchover a leader publishes a whole message at each change of the metadata: a few times a second.
WHOLE_SWITCHING_S: Final = 1.0
SETTLE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one measurement. Bytes and commands per second are the server's own counts.

    Attributes:
        hosts: The number of hosts.
        pace: ``quiet`` or ``switchover``.
        message_bytes: The payload of a whole message and of a heartbeat.
        cpu: The server's share of one core, 1 for all of it.
        out_bytes, in_bytes: The bytes from the server and to it, per second.
        commands: The commands per second.
        deliveries: The messages that hosts have read, per second.
        median_ms, last_ms, worst_ms: The time from before XADD until a host has the message: the median of all; the
            last host, in the median of messages; and the last host of the worst message.
        streams_bytes: The memory of both streams.
        memory_bytes: The total memory of the server, including its clients' buffers.
        lost: The messages that a host did not receive.
    """

    hosts: int
    pace: str
    message_bytes: tuple[int, int]
    cpu: float
    out_bytes: float
    in_bytes: float
    commands: float
    deliveries: float
    median_ms: float
    last_ms: float
    worst_ms: float
    streams_bytes: int
    memory_bytes: int
    lost: int


def measure(hosts: int, pace: str, seconds: float, rows: int) -> Figures:
    """Measure one server with a number of hosts.

    Args:
        hosts: The number of hosts.
        pace: ``quiet`` or ``switchover``.
        seconds: The duration of the measurement.
        rows: The number of rows of the deployment's metadata.
    """
    switching = pace == "switchover"
    with RedisServer(settings={"maxclients": "10000"}) as server:
        bus = StreamBus(FleetConfig(server.url(), KEYS), BG_ID)
        bus.publish(1, 0, seal(_message(1, 0, rows, hosts), BG_ID, KEYS))
        for number in range(HOSTS_KEPT):
            # The stream is as full as after an hour or two.
            bus.report(_report(number))
        received, output = os.pipe()
        stopped, stop = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(received)
            os.close(stop)
            try:
                block_s = FLEET_BLOCK_SWITCHING_S if switching else FLEET_BLOCK_S
                _be_hosts((server.address, server.port), hosts, block_s, stopped, output)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(output)
        os.close(stopped)
        try:
            messages = _lead(bus, switching, SETTLE_S, 1, rows, hosts)
            before = _counts(server)
            messages = _lead(bus, switching, seconds, max(messages) + 1, rows, hosts)
            after = _counts(server)
            streams = sum(int(server.execute("MEMORY", "USAGE", key) or 0) for key in stream_keys(BG_ID))
            bus.close()
            # Time for the last message to arrive.
            time.sleep(FLEET_TIMEOUT_S)
        finally:
            os.close(stop)
            with os.fdopen(received, "rb") as pipe:
                times = json.loads(pipe.read())
            os.waitpid(child, 0)
    took_s = after["at"] - before["at"]
    per_s = {name: (after[name] - before[name]) / took_s for name in after}
    delays = [[at_s - sent_s for at_s in times.get(str(seq), [])] for seq, sent_s in messages.items()]
    lasts = [max(ones) for ones in delays if ones]
    return Figures(
        hosts=hosts,
        pace=pace,
        message_bytes=(
            len(seal(_message(1, 1, rows, hosts), BG_ID, KEYS)),
            len(seal(_heartbeat(1, 2, 1, rows, hosts), BG_ID, KEYS)),
        ),
        cpu=per_s["cpu"],
        out_bytes=per_s["total_net_output_bytes"],
        in_bytes=per_s["total_net_input_bytes"],
        commands=per_s["total_commands_processed"],
        deliveries=sum(map(len, delays)) / took_s,
        median_ms=1000 * statistics.median([delay for ones in delays for delay in ones]),
        last_ms=1000 * statistics.median(lasts),
        worst_ms=1000 * max(lasts),
        streams_bytes=streams,
        memory_bytes=int(after["used_memory"]),
        lost=sum(hosts - len(ones) for ones in delays),
    )


# -- the leader ----------------------------------------------------------------------------------------------------


def _lead(bus: StreamBus, switching: bool, seconds: float, seq: int, rows: int, hosts: int) -> dict[int, float]:
    """Publish for a number of seconds. Return the time at which each seq was sent, on the monotonic clock."""
    beat_s = FLEET_HEARTBEAT_SWITCHING_S if switching else FLEET_HEARTBEAT_S
    whole_s = WHOLE_SWITCHING_S if switching else FLEET_WHOLE_S
    sent: dict[int, float] = {}
    began = time.monotonic()
    whole_at, whole = began, seq
    while (now := time.monotonic()) < began + seconds:
        if now >= whole_at:
            whole_at, whole = now + whole_s, seq
            message = _message(1, seq, rows, hosts)
        else:
            message = _heartbeat(1, seq, whole, rows, hosts)
        payload = seal(message, BG_ID, KEYS)
        sent[seq] = time.monotonic()
        bus.publish(1, seq, payload)
        seq += 1
        time.sleep(max(0.0, began + len(sent) * beat_s - time.monotonic()))
    return sent


def _message(term: int, seq: int, rows: int, hosts: int) -> Message:
    """Return a whole message in which both roles have answered."""
    at_ns = time.time_ns()
    names = [(f"{n}.{BLUE}" if n else BLUE, f"{n}.{GREEN}" if n else GREEN) for n in range(rows // 2)]
    told = tuple(
        StatusRow(name, 5432, f"BLUE_GREEN_DEPLOYMENT_{role}", "AVAILABLE", "1.0")
        for pair in names
        for name, role in zip(pair, ("SOURCE", "TARGET"), strict=True)
    )
    readings = tuple(
        Reading((Answered(NEVER, role, role is Role.TARGET, True, 5000), StatusRead(NEVER, role, told, ())), at_ns)
        for role in Role
    )
    return Message(term, seq, "a" * 16, at_ns, "0123456789abcdef", hosts, seq, (at_ns, at_ns), readings)


def _heartbeat(term: int, seq: int, whole: int, rows: int, hosts: int) -> Message:
    return replace(_message(term, seq, rows, hosts), whole=whole, readings=())


def _report(number: int) -> bytes:
    """Return the sealed report of the host with this number."""
    report = Report(
        member=f"{number:016x}",
        host=f"pod-{number}.shop.svc",
        place=f"{number:016x}",
        version="1.0.0",
        issued_ns=time.time_ns(),
        application="0123456789abcdef",
        phase=Phase.CREATED,
        missing=(),
        workers=4,
        held=0,
        standing=FleetRole.FOLLOWER,
    )
    return seal_report(report, BG_ID, KEYS)


# -- the hosts -----------------------------------------------------------------------------------------------------


class _Host:
    """The two connections of one host."""

    def __init__(self, address: tuple[str, int], number: int, block_s: float, *, leads: bool) -> None:
        self.subscriber: Final = socket.create_connection(address)
        self.publisher: Final = socket.create_connection(address)
        for connection in (self.subscriber, self.publisher):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._keys: Final = [key.encode() for key in stream_keys(BG_ID)][: 2 if leads else 1]
        self._after = [b"0-0", b"$"][: len(self._keys)]
        self._block: Final = str(int(block_s * 1000)).encode()
        self._number: Final = number
        self._buffer = b""
        self.report_at = time.monotonic() + random.uniform(0, FLEET_REPORT_S)

    def request(self) -> None:
        """Send a command that waits for new entries."""
        count = str(FLEET_ENTRIES_READ).encode()
        self.subscriber.sendall(
            _command(b"XREAD", b"COUNT", count, b"BLOCK", self._block, b"STREAMS", *self._keys, *self._after)
        )

    def read(self) -> None:
        """Read from the network."""
        self._buffer += self.subscriber.recv(1 << 20)

    def messages(self) -> list[int]:
        """Return the seqs of the received messages. Send the next command once an answer is complete."""
        try:
            answer, end = _parse(self._buffer, 0)
        except IndexError:
            return []
        assert end == len(self._buffer), self._buffer
        self._buffer = b""
        found: list[int] = []
        for key, entries in answer or ():
            self._after[self._keys.index(key)] = entries[-1][0]
            if key == self._keys[0]:
                found += [int(entry[0].partition(b"-")[2]) for entry in entries]
        self.request()
        return found

    def report(self) -> None:
        """Send the host's report."""
        key, kept = stream_keys(BG_ID)[1].encode(), str(HOSTS_KEPT).encode()
        self.publisher.sendall(_command(b"XADD", key, b"MAXLEN", b"~", kept, b"*", b"m", _report(self._number)))
        self.report_at += FLEET_REPORT_S * random.uniform(0.8, 1.2)


def _be_hosts(address: tuple[str, int], hosts: int, block_s: float, stopped: int, output: int) -> None:
    """Be all hosts until *stopped* ends, and write the times at which each message was received: JSON lists by seq."""
    selector = selectors.DefaultSelector()
    selector.register(stopped, selectors.EVENT_READ, None)
    crew = [_Host(address, number, block_s, leads=number == 0) for number in range(hosts)]
    for host in crew:
        selector.register(host.subscriber, selectors.EVENT_READ, host)
        selector.register(host.publisher, selectors.EVENT_READ, None)
        host.request()
    heard: dict[int, list[float]] = {}
    look_s, is_stopped = 0.0, False
    while not is_stopped:
        now = time.monotonic()
        took: list[tuple[float, _Host]] = []
        for key, _ in selector.select(0.02):
            if key.fileobj == stopped:
                is_stopped = True
            elif isinstance(key.fileobj, socket.socket) and key.data is None:
                key.fileobj.recv(4096)
            if key.data is None:
                continue
            key.data.read()
            took.append((time.monotonic(), key.data))
        # Parse afterwards: a thread that parsed each of a thousand answers at once would delay the last hosts.
        for at_s, host in took:
            for seq in host.messages():
                heard.setdefault(seq, []).append(at_s)
        if now > look_s:
            look_s = now + 0.02
            for host in crew:
                if host.report_at < now:
                    host.report()
    with os.fdopen(output, "w") as pipe:
        json.dump(heard, pipe)


def _command(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _parse(data: bytes, at: int) -> tuple[Any, int]:
    """Return one answer of RESP2 and the position of its end. Raise IndexError if the answer is not complete yet."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise IndexError
    kind, value = data[at : at + 1], data[at + 1 : end]
    at = end + 2
    if kind not in (b"$", b"*"):
        return value, at
    size = int(value)
    if size < 0:
        return None, at
    if kind == b"$":
        if len(data) < at + size + 2:
            raise IndexError
        return data[at : at + size], at + size + 2
    found = []
    for _ in range(size):
        one, at = _parse(data, at)
        found.append(one)
    return found, at


# -- the server ----------------------------------------------------------------------------------------------------


def _counts(server: RedisServer) -> dict[str, float]:
    info = server.execute("INFO").decode()
    names = ("total_net_output_bytes", "total_net_input_bytes", "total_commands_processed", "used_memory")
    found = {name: float(re.findall(rf"^{name}:(\d+)", info, re.MULTILINE)[0]) for name in names}
    # The fields after the name in parentheses: user and system time are the 12th and 13th.
    stat = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(stat[11]) + int(stat[12])
    return {**found, "cpu": ticks / os.sysconf("SC_CLK_TCK"), "at": time.monotonic()}


def _figures(hosts: Sequence[int], seconds: float, rows: int) -> Iterator[Figures]:
    for count in hosts:
        for pace in ("quiet", "switchover"):
            yield measure(count, pace, seconds, rows)


def main() -> None:
    """Measure, and print a line of JSON for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--deployment", choices=ROWS, default="instance")
    options = parser.parse_args()
    for figures in _figures(options.hosts, options.seconds, ROWS[options.deployment]):
        print(json.dumps(asdict(figures)), flush=True)


if __name__ == "__main__":
    main()
