"""Certificates for the lab's servers: each is for names, as on RDS, and is made anew when a server gets other names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import trustme

from bgpool.lab.postgres import PostgresServer

__all__ = ["Authority"]


class Authority:
    """A certificate authority of one pair.

    Attributes:
        ca_file: Its own certificate, for ``sslrootcert``.
    """

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca_file))
        self.ca_file.chmod(0o644)

    def certify(self, server: PostgresServer, names: Iterable[str]) -> None:
        """Give *server* a certificate for *names* alone; one that runs takes it with its next `reload`."""
        issued = self._authority.issue_cert(*names)
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        server.write_file("server.crt", chain.decode())
        server.write_file("server.key", issued.private_key_pem.bytes().decode())
