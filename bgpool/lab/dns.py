"""A DNS server for a pair's hosts file and aliases, with optional delays, failures and silence."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Mapping
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from bgpool.lab.names import HostsFile

__all__ = ["DnsServer"]

log = logging.getLogger("bgpool.lab")

THREADS: Final = 4
CHAIN_LINKS: Final = 8


class DnsServer:
    """A DNS server for A and CNAME on a loopback address, over UDP.

    Attributes:
        delay_s: The delay of every answer, in seconds.
        failing: True to answer SERVFAIL.
        silent: True for no answer at all.
        ttl_s: The time to live in answers, in seconds.
        questions: The number of queries received.
    """

    def __init__(self, hosts: HostsFile, address: str) -> None:
        """Serve the names of *hosts* at *address*, on a port that is free.

        Raises:
            OSError: The address cannot be used.
        """
        self.delay_s = 0.0
        self.failing = False
        self.silent = False
        self.ttl_s = 5
        self.questions = 0
        self._hosts: Final = hosts
        self._aliases: dict[str, str] = {}
        self._frozen: Mapping[str, str] | None = None
        self._socket: Final = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self.address: Final[str] = address
        self.port: Final[int] = self._socket.getsockname()[1]
        self._requests: Final[queue.SimpleQueue[tuple[bytes, tuple[str, int]] | None]] = queue.SimpleQueue()
        self._threads: Final = [threading.Thread(target=self._receive, daemon=True)] + [
            threading.Thread(target=self._serve, daemon=True) for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def alias(self, name: str, target: str) -> None:
        """Make *name* a CNAME of *target*."""
        self._aliases = {**self._aliases, name.lower(): target.lower()}

    def freeze(self) -> None:
        """Keep the current addresses, whatever happens to the names: a stale cache."""
        self._frozen = self._hosts.read()

    def thaw(self) -> None:
        """Serve the current addresses again."""
        self._frozen = None

    def close(self) -> None:
        """End the threads after the answers under way."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as goodbye:
            goodbye.sendto(b"", (self.address, self.port))
        for thread in self._threads:
            thread.join(10.0)
        self._socket.close()

    def _receive(self) -> None:
        while True:
            data, client = self._socket.recvfrom(4096)
            if not data:
                break
            self._requests.put((data, client))
        for _ in range(THREADS):
            self._requests.put(None)

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            data, client = request
            self.questions += 1
            time.sleep(self.delay_s)
            if self.silent:
                continue
            try:
                self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), client)
            except (dns.exception.DNSException, OSError) as error:
                log.warning("no DNS question: %s", error)

    def _answer(self, question: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        if self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
            return answer
        asked = question.question[0]
        name = asked.name.to_text(omit_final_dot=True).lower()
        for _ in range(CHAIN_LINKS):
            target = self._aliases.get(name)
            if target is None:
                break
            answer.answer.append(dns.rrset.from_text(f"{name}.", self.ttl_s, "IN", "CNAME", f"{target}."))
            name = target
            if asked.rdtype == dns.rdatatype.CNAME:
                return answer
        addresses = self._frozen if self._frozen is not None else self._hosts.read()
        address = addresses.get(name)
        if address is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif asked.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(f"{name}.", self.ttl_s, "IN", "A", address))
        return answer
