"""Additional requirements of MySQL logins: a package for PyMySQL, or the password in the server's cache."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from typing import Final

from pymysql import _auth

__all__ = ["cache_warning", "missing_package", "rehearse", "sends_encrypted"]

#: The plugins with which the password, without TLS, is sent encrypted with the server's RSA key.
_RSA: Final = frozenset({"caching_sha2_password", "sha256_password"})
#: The plugin that accepts a scrambled password instead while the server has it in its cache. The cache is empty after a
#: start of the server and after FLUSH PRIVILEGES, and is not replicated.
_CACHED: Final = "caching_sha2_password"
_ED25519: Final = "client_ed25519"

#: An arbitrary public key. Data that is encrypted with it is never sent.
_ANY_KEY: Final = b"""-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0vFgUd2vwFlA0umV5jCR
osmYT+5/yFy7Xv0817Qx6OQNIadwvcaWt3P7fodYcYm/9zQTYxwSwPMHGr2iqIFb
2q90ENsyO6z1nZ2bN2nlK8rfqOA5SpfeNU237ZXiEj65dPDK4qcLRwD33rAlzww8
9WmXiLslOHNVu05ceiSszUuiQEbEcBZbTaBRyG/kLa4IvQreK6vFrmGkrsOAT3Bc
xtp3xpMebqLA6ycbaUMcBBXSY2spin6vcQTNhkdnmwxJoUHLvZAtF/pTD+HsiM7T
GE94QWtAq8DCl5U22JnxeKLFq8C+q3Ju2enQ4RCdX2c97sMUz7+eG/luGkqzDTov
LwIDAQAB
-----END PUBLIC KEY-----
"""

_USE: Final = "use TLS (ssl_ca and ssl_verify_identity), or pip install 'bgpool[rsa]'"


def cache_warning(plugin: str, *, secure: bool) -> str:
    """Return a warning if a successful login would fail on a server without the password in its cache; otherwise empty.

    Args:
        plugin: The account's authentication plugin.
        secure: True if the connection is encrypted, or is a Unix socket.
    """
    if plugin != _CACHED or secure or importlib.util.find_spec("cryptography") is not None:
        return ""
    return (
        f"the login ({plugin}) works only while the server has the password in its cache, and green does not have it: "
        f"the connection is not encrypted and the package cryptography is not installed; {_USE}"
    )


def sends_encrypted(plugin: str, *, secure: bool) -> bool:
    """Return whether a login with *plugin* encrypts the password, on a server that does not have it in its cache."""
    return plugin in _RSA and not secure


@functools.cache
def rehearse() -> None:
    """Encrypt a dummy once per process, because the package cryptography takes 5 ms of CPU time at its first use.

    Logins on blue may never need it, because blue has the password in its cache. The first login on green does.
    """
    with contextlib.suppress(Exception):  # a login without the package reports the error
        _auth.sha2_rsa_encrypt(b"", bytes(_auth.SCRAMBLE_LENGTH), _ANY_KEY)


def missing_package(plugin: str) -> str:
    """Return the remedy if PyMySQL lacks a package for *plugin*; empty if it needs none."""
    if plugin in _RSA:
        return (
            f"the account's {plugin} takes the password encrypted: the connection is not encrypted and the package "
            f"cryptography is not installed; {_USE}"
        )
    if plugin == _ED25519:
        return f"the account's {plugin} needs the package pynacl; pip install 'PyMySQL[ed25519]'"
    return ""
