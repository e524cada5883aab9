"""Names of nodes to addresses, by the system's resolver in a thread."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ciruela.interfaces import Address, InThread
from ciruela.model.errors import FormatError, LinkLost

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")


class Resolve(Protocol):
    """Function that looks up the addresses of a name, as :func:`resolver` gives it."""

    def __call__(self, name: str, default_port: int) -> Deferred[list[Address]]:
        """All addresses of ``name``, in the resolver's order. Fails with FormatError for a bad name, LinkLost when nobody knows it."""


def refuse_scheme(text: str) -> None:
    """Raise FormatError for what begins with ``http://`` or the like."""
    found = _SCHEME.match(text)
    if found is not None:
        host = text[found.end() :].partition("/")[0]
        raise FormatError(f"{text[:80]!r} is the address of a page, not a host name: leave {found[0]} out (write {host[:80]})")


def split_name(text: str, default_port: int) -> tuple[str, int]:
    """Host (lower case, without a dot at the end) and port of ``host``, ``host:port``, ``[v6]:port``, ``[v6]`` or a bare IPv6 address.

    Raises FormatError.
    """
    refuse_scheme(text)
    shown = repr(text[:80])
    host, port_text = text, None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or _numeric(host) != 6:
            raise FormatError(f"{shown} is not an IPv6 address in brackets (write [2001:db8::1] or [2001:db8::1]:24783)")
        port_text = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    elif ":" in text and _numeric(text) != 6:
        raise FormatError(f"{shown} is neither a host name nor an IPv6 address (write [2001:db8::1]:24783 for one with a port)")
    port = default_port
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) < 65536):
            raise FormatError(f"{shown} has a bad port (write a number from 1 to 65535 after the colon)")
        port = int(port_text)
    if _numeric(host):
        return host.lower(), port
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.match(label) for label in labels) or labels[-1].isdigit():
        raise FormatError(f"{shown} is not a host name (letters, digits, dots and hyphens)")
    return host, port


def join_name(host: str, port: int) -> str:
    """Joins what :func:`split_name` takes apart; no port is written when it is 0."""
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _numeric(host: str) -> int:
    """4 or 6 for an IP address, 0 for anything else."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def _look_up(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Address.of(str(entry[4][0]), port) for entry in found))


def resolver(in_thread: InThread, look_up: Callable[[str, int], list[Address]] = _look_up) -> Resolve:
    """A function that resolves names with ``getaddrinfo``, run by ``in_thread``."""

    def resolve(name: str, default_port: int) -> Deferred[list[Address]]:
        try:
            host, port = split_name(name, default_port)
        except FormatError:
            failed: Deferred[list[Address]] = Deferred()
            failed.errback(Failure())
            return failed
        if _numeric(host):
            return succeed([Address.of(host, port)])
        answer: Deferred[list[Address]] = in_thread(look_up, host, port)
        return answer.addCallbacks(_some, _unknown, callbackArgs=(host,), errbackArgs=(host,))

    return resolve


def _some(addresses: list[Address], host: str) -> list[Address]:
    if not addresses:
        raise LinkLost(f"the name {host} has no addresses")
    return addresses


def _unknown(failure: Failure, host: str) -> list[Address]:
    failure.trap(OSError, UnicodeError)
    reason = getattr(failure.value, "strerror", None) or failure.getErrorMessage()
    raise LinkLost(f"the name {host} cannot be resolved: {reason}")
